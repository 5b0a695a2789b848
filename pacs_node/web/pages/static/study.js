// The reading room: hangs the radiograph, moves between images and studies, and guards the answer.

import { $, $$, keys, toast } from "./shell.js";
import { LightBox, PRESETS } from "./viewer.js";

const EVERY_MS = 3000, SEEN_MS = 600; // no answer to a radiograph that was not on the screen
const box = $(".light .box"), values = $("[data-values]"), say = $("#say"), me = location.pathname.split("/").pop();
let light = null, readyAt = box ? Infinity : 0;

function tell(l) {
  const parts = [`centre ${Math.round(l.centre)}, width ${Math.round(l.width)}`, `${Math.round(l.zoom * devicePixelRatio * 100)} %`, l.inverted && "inverted", l.turn && `turned ${l.turn}°`];
  values.textContent = parts.filter(Boolean).join(", ");
}

async function hang() {
  const film = new LightBox(box, tell);
  try {
    await film.show($("img", box).src);
    light = film;
    readyAt = performance.now() + SEEN_MS;
    $("#bench").hidden = false;
  } catch {
    const problem = await fetch($("img", box).src).then((answer) => answer.json(), () => null);
    $("#no-film").hidden = false;
    $("#no-film p").textContent = problem?.detail ?? "The node did not answer. The file is kept.";
    $(".light").hidden = true;
  }
}

const DO = {
  invert: () => light?.set({ inverted: !light.inverted }), rotate: () => light?.rotate(), fit: () => light?.fit(), actual: () => light?.actual(), reset: () => light?.reset(),
};
const preset = (name) => light?.set({ centre: PRESETS[name][0], width: PRESETS[name][1] });

function choose(tool) {
  if (!light) return;
  light.tool = tool;
  for (const b of $$("[data-tool]")) b.setAttribute("aria-pressed", String(b.dataset.tool === tool));
}

function image(by) {
  const all = $$(".shelf .pick"), at = all.findIndex((a) => a.hasAttribute("aria-current"));
  if (all.length > 1) all[(at + by + all.length) % all.length].click();
}

function step(by) {
  const order = JSON.parse(sessionStorage.order ?? "[]"), next = order[order.indexOf(me) + by];
  if (!order.includes(me) || !next) return toast("That was the last study of the list as you opened it.");
  location.href = `/studies/${next}`;
}

function answer(verdict) {
  const button = $(`[name=verdict][value=${verdict}]`);
  if (button && !button.disabled) button.click();
}

addEventListener("click", (event) => {
  const { do: act, tool, preset: name, step: by } = event.target.closest("button")?.dataset ?? {};
  if (act) DO[act]();
  else if (tool) choose(tool);
  else if (name) preset(name);
  else if (by) step(Number(by));
});
say?.addEventListener("submit", (event) => {
  localStorage.reader = $("[name=reviewer]").value;
  if (performance.now() >= readyAt) return;
  event.preventDefault();
  toast("Not saved: the radiograph was not on the screen yet.");
});
if (say && localStorage.reader) $("[name=reviewer]").value ||= localStorage.reader;

/** A waiting study fills in by itself; the picture and what is being typed stay as they are. */
async function refresh() {
  if (document.hidden) return;
  const answer = await fetch(location.pathname, { headers: { Accept: "text/html" } }).catch(() => null);
  if (!answer?.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of [".told", ".shelf", ".three"]) {
    const [mine, theirs] = [$(part), $(part, page)];
    if (mine.innerHTML !== theirs.innerHTML && !mine.contains(document.activeElement)) mine.replaceChildren(...document.adoptNode(theirs).childNodes);
  }
  if ($("#main", page).dataset.settled === "yes") clearInterval(timer);
}

keys([
  ["A", "Agree", () => answer("agree")], ["D", "Disagree", () => answer("disagree")], ["C", "Comment", () => $("#comment")?.focus()],
  ["J", "Next study", () => step(1)], ["K", "Previous study", () => step(-1)], ["]", "Next image of the study", () => image(1)], ["[", "Previous image", () => image(-1)],
  ...Object.keys(PRESETS).map((name, i) => [String(i + 1), `Window: ${$(`[data-preset=${name}]`)?.dataset.word ?? name}`, () => preset(name)]),
  ["I", "Invert", DO.invert], ["R", "Turn by 90°", DO.rotate], ["F", "Fit", DO.fit], ["O", "1:1, one pixel per pixel", DO.actual], ["0", "Put the view back", DO.reset],
  ["+ or =", "Zoom in", () => light?.magnify(1.25)], ["-", "Zoom out", () => light?.magnify(0.8)],
]);
if (box) hang();
const timer = $("#main").dataset.settled === "no" && setInterval(refresh, EVERY_MS);
setTimeout(() => $("#saved")?.remove(), 8000);
