// The film on the light box: the chosen image, an earlier one beside it, the tools of the bench, and the heat map.

import { $, $$ } from "./shell.js";
import { LightBox, PRESETS } from "./viewer.js";

const SEEN_MS = 600; // no answer to a radiograph that was not on the screen
const HEAT = 0.85, FAINTEST = 0.1, STEP = 0.1;
const room = { light: null, beside: null, readyAt: Infinity, tool: "window", heat: 0, heatImage: null };

/** Return a decoded picture, or throw what the node said about it. */
export async function picture(url) {
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    const problem = await fetch(url).then((answer) => answer.json(), () => null);
    throw new Error(problem?.detail ?? "The node did not answer. The file is kept.");
  }
  return image;
}

/** Tell whether the radiograph has been on the screen long enough to be answered. */
export const isSeen = () => performance.now() >= room.readyAt;
/** What stands beside the radiograph has changed: it must be seen again before it is answered. */
export const lookAgain = () => { if (room.readyAt !== Infinity) room.readyAt = performance.now() + SEEN_MS; };
const address = (box) => box?.dataset.src ?? "";

function tell(box) {
  const words = $("[data-values]", box.closest(".light"));
  return (l) => {
    const parts = [`centre ${Math.round(l.centre)}, width ${Math.round(l.width)}`, `${Math.round(l.zoom * devicePixelRatio * 100)} %`, l.inverted && "inverted", l.turn && `turned ${l.turn}°`];
    words.textContent = parts.filter(Boolean).join(", ");
  };
}

function refuse(box, sentence) {
  const light = box.closest(".light"), message = $("template", light).content.cloneNode(true);
  $("p", message).textContent = sentence;
  box.replaceWith(message);
}

/** Hang what the page names; `ready` is a picture that was fetched before it was asked for. */
export async function hang(ready = null) {
  const box = $("#film"), asked = $("#main").dataset.study;
  Object.assign(room, { light: null, beside: null, readyAt: Infinity, heat: 0, heatImage: null });
  $("#bench").hidden = !box;
  bench();
  if (!box) return;
  try {
    const image = ready?.src.endsWith(address(box)) ? ready : await picture(address(box));
    if (asked !== $("#main").dataset.study || !box.isConnected) return; // the reader has gone on
    room.light = new LightBox(box, tell(box));
    room.light.tool = room.tool;
    room.light.show(image);
    room.readyAt = performance.now() + SEEN_MS;
    bench();
  } catch (error) {
    refuse(box, error.message);
    return;
  }
  const earlier = $("#earlier-film");
  if (earlier) await hangBeside(earlier);
}

async function hangBeside(box) {
  try {
    const image = await picture(address(box));
    if (!box.isConnected) return;
    room.beside = new LightBox(box, tell(box));
    room.beside.tool = room.tool;
    room.beside.show(image);
  } catch (error) {
    refuse(box, error.message);
  }
}

const both = (act) => [room.light, room.beside].filter(Boolean).forEach(act);
const canExplain = () => Boolean(room.light && $("#film")?.dataset.heat && !document.body.classList.contains("blind"));

function bench() {
  for (const b of $$("[data-tool]")) b.setAttribute("aria-pressed", String(b.dataset.tool === room.tool));
  const button = $("#heat"), slider = $("#opacity"), key = $("[data-heatkey]");
  button.disabled = !canExplain();
  button.setAttribute("aria-pressed", String(room.heat > 0));
  slider.disabled = !room.heat;
  slider.value = Math.round(100 * (room.heat || HEAT));
  if (key) key.hidden = !room.heat;
}

/** Show the heat map with this opacity, 0 = not at all; returns a sentence when it cannot be shown. */
export async function heat(opacity) {
  const { light } = room;
  if (!canExplain()) return "There is no heat map for this image.";
  if (opacity && !room.heatImage) {
    try {
      room.heatImage = await picture($("#film").dataset.heat);
    } catch (error) {
      return error.message;
    }
    if (light !== room.light) return "";
  }
  room.heat = opacity;
  light.cover(room.heatImage, opacity);
  bench();
  return "";
}
export const toggleHeat = () => heat(room.heat ? 0 : HEAT);
export const moreHeat = (by) => heat(Math.max(FAINTEST, Math.min(1, (room.heat || HEAT) + by * STEP)));
export const hideHeat = () => { room.light?.cover(null); room.heat = 0; bench(); };
export const refreshBench = bench;

export const DO = {
  invert: () => both((l) => l.set({ inverted: !l.inverted })),
  rotate: () => room.light?.rotate(),
  fit: () => both((l) => l.fit()),
  actual: () => both((l) => l.actual()),
  reset: () => both((l) => l.reset()),
};
export const magnify = (factor) => room.light?.magnify(factor);
export const preset = (name) => both((l) => l.set({ centre: PRESETS[name][0], width: PRESETS[name][1] }));
export const presets = Object.keys(PRESETS);

export function choose(tool) {
  room.tool = tool;
  both((l) => { l.tool = tool; });
  bench();
}
