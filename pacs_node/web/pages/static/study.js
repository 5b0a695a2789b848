// The reading room: moves between studies, images and the past; keeps what is shown fresh; the next study lies ready.

import { $, $$, contact, fetchPage, keys, toast, unhide } from "./shell.js";
import { DO, choose, filmAt, hang, heat, hideHeat, lookAgain, magnify, moreHeat, preset, presets, refreshBench, toggleHeat, toggleTheirs } from "./film.js";
import { buttonOf, isInConflict, relabel, reportOf, save, settle } from "./answer.js";
import { listen } from "./live.js";
import { resume } from "./undo.js";

const ready = new Map(); // study -> {page, film}: what was asked for before its reader did; the film may be on its way
const main = () => $("#main"), me = () => main().dataset.study;
const order = () => JSON.parse(sessionStorage.order ?? "[]");
const address = (study) => `/studies/${study}`, studyOf = (url) => new URL(url).pathname.split("/").pop();
const isBlind = () => localStorage.blind === "on";
let revealed = false, shows = 0, here = location.href; // pages asked for so far; the address of what is on the screen

// ---- moving ----
/** Fetch a study before it is asked for: nobody sees it yet. */
async function fetchAhead(url) {
  const page = await fetchPage(url, { background: true }), source = $("#film", page)?.dataset.src;
  return { page, film: source ? filmAt(source, { background: true }).catch(() => null) : null };
}

async function fetchNext() {
  const next = order()[order().indexOf(me()) + 1];
  for (const study of ready.keys()) if (study !== next) ready.delete(study);
  if (next && !ready.has(next)) ready.set(next, fetchAhead(address(next)).catch(() => { ready.delete(next); return null; }));
}

/** Show a page in place of this one; the modules and what they remember stay. True = shown: neither failed nor overtaken. */
async function show(url, { push = true, keep = false, background = false } = {}) {
  const begun = performance.now(), mine = ++shows, to = new URL(url, location.href).href, study = studyOf(to);
  const isNew = study !== me(), kept = isNew && (await ready.get(study));
  let found = kept;
  try {
    found ||= { page: await fetchPage(to, { background }), film: null };
  } catch (error) {
    if (mine === shows) stay(to, error);
    return false;
  }
  if (mine !== shows) return false; // the reader has gone elsewhere meanwhile
  const typed = keep ? ["#comment", "#finding"].map((name) => [name, $(name)?.value]) : [];
  document.title = found.page.title;
  for (const image of $$(".box > img", found.page)) image.remove(); // the light box fetches it itself
  const held = document.activeElement, isTyping = keep && held?.id === "comment", isOfFilm = held?.id === "film", said = $$("#toasts > *"), isElsewhere = held !== document.body && !main().contains(held);
  main().replaceWith(document.adoptNode($("#main", found.page)));
  $("#toasts").replaceChildren(...said);
  if (said.some((toast) => toast.contains(held))) held.focus({ preventScroll: true });
  else if (!isElsewhere) ((isTyping && $("#comment")) || (isOfFilm && $("#film")) || main()).focus({ preventScroll: true });
  if (push) history.pushState(null, "", to);
  else history.replaceState(null, "", to);
  here = to;
  if (isNew) revealed = false;
  for (const [name, value] of typed) if (value && $(name)) $(name).value = value;
  ready.delete(study);
  await draw(found.film);
  if (mine !== shows) return false;
  main().dataset.shownMs = Math.round(performance.now() - begun);
  if (kept) refresh({ background: false }); // now it is seen
  fetchNext();
  return true;
}

/** What cannot be shown: the node says itself why; where it says nothing, the reader stays at what is on the screen. */
function stay(to, { status }) {
  if (status) { location.href = to; return; }
  if (location.href !== here) history.pushState(null, "", here);
  toast("The node did not answer; what you asked for is not shown.");
}

async function draw(film = null) {
  unhide();
  const at = order().indexOf(me());
  $("#place").textContent = at < 0 ? "" : `${at + 1} of ${order().length} in the list`;
  const name = $("[name=reviewer]");
  if (name) name.value ||= localStorage.reader ?? "";
  relabel();
  blind();
  await hang(film);
}

function step(by) {
  const next = order()[order().indexOf(me()) + by];
  if (!order().includes(me()) || !next) return toast("That was the last study of the list as you opened it.");
  return show(address(next));
}

async function goOn({ isSaved = true } = {}) { // after an answer: the next one, or this one again with the answer below it
  const next = order()[order().indexOf(me()) + 1], isHidden = "hidden" in main().dataset;
  if (isHidden && isSaved) await show(address(me()), { push: false }); // now the model's answer
  else if (order().includes(me()) && next) await show(address(next));
  else await show(address(me()), { push: false });
}

/** Show another reader's region where it lies, or hide it. */
async function theirs(button) {
  const { instance } = button.dataset;
  if (toggleTheirs(button.dataset)) return;
  const link = $$(".shelf [data-image]").find((a) => a.href.includes(instance));
  if (link) link.click();
}

function image(by) {
  const all = $$(".shelf [data-image]"), at = all.findIndex((a) => a.hasAttribute("aria-current"));
  if (all.length > 1) all[(at + by + all.length) % all.length].click();
}

// ---- what is hidden until the reader has looked ----
function blind() {
  document.documentElement.classList.toggle("blind", isBlind() && !revealed);
  refreshBench();
}
function reveal() {
  if (document.documentElement.classList.contains("blind")) revealed = true;
  else { localStorage.blind = isBlind() ? "off" : "on"; revealed = false; hideHeat(); }
  blind();
  toast(isBlind() ? "The model's answer stays hidden until you have looked." : "The model's answer is shown at once.");
}

// ---- keeping fresh ----
const AGAIN_MS = 5000;
let again;
const isHeld = (part) => $(`${part} :focus`) !== null;

/** Let the film have the heat map of the same image in a newer page. */
function explain(theirs) {
  const film = $("#film");
  if (!film || film.dataset.instance !== theirs?.dataset.instance) return;
  if (theirs.dataset.heat) film.dataset.heat = theirs.dataset.heat;
  else delete film.dataset.heat;
}

/** Put a part of a page in place of ours; whoever held something in it holds the panel then, and answers nothing by a second press. */
function renew(part, page) {
  const [mine, theirs] = [$(part), $(part, page)], wasHeld = isHeld(part);
  if (!mine || !theirs || mine.innerHTML === theirs.innerHTML) return;
  mine.replaceChildren(...document.adoptNode(theirs).childNodes);
  if (wasHeld) $(".told").focus({ preventScroll: true });
}

/** Return the address of this study with what hangs now, or another of its images, whatever the node would hang by itself. */
function hung(image = main().dataset.shown) {
  const url = new URL(here);
  if (image) url.searchParams.set("image", image);
  return url.href;
}

/** A waiting study fills in by itself; the picture and what is being typed stay, unless the new answer is of another image. */
async function refresh({ background = true } = {}) {
  const asked = hung();
  const page = await fetchPage(asked, { background }).catch(() => null);
  clearTimeout(again);
  if (!page) again = setTimeout(() => refresh({ background }), AGAIN_MS); // the news that were asked for are not lost with one answer
  if (!page || isInConflict() || $("#main", page).dataset.study !== me()) return;
  if (asked !== hung()) { refresh({ background }); return; }
  const [mine, theirs] = [main().dataset, $("#main", page).dataset];
  const isNew = reportOf(mine.tag) !== reportOf(theirs.tag); // a new answer of the model; another reader's word is met when ours is saved
  if (isNew && theirs.decisive && theirs.decisive !== mine.shown) {
    const isShown = await show(hung(theirs.decisive), { push: false, keep: true, background });
    if (isShown) toast(`The model's answer to this study is new; shown is the image that it is of, ${$("#film")?.dataset.name ?? ""}.`);
    return;
  }
  if (isNew || !isHeld(".told")) main().toggleAttribute("data-hidden", "hidden" in theirs);
  for (const part of [".told", ".shelf"]) if (isNew || !isHeld(part)) renew(part, page);
  if (isNew) {
    renew("#choices", page);
    renew("#promise", page);
    relabel();
    mine.tag = theirs.tag;
    mine.decisive = theirs.decisive;
    lookAgain();
    toast("The model's answer to this study is new.");
  }
  unhide();
  explain($("#film", page));
  mine.settled = theirs.settled;
  refreshBench();
}

const say = async (opacity) => { const why = await opacity; if (why) toast(why); };
const answer = (key) => { const button = buttonOf(key); if (button) save(button, { next: goOn, renew: refresh }); };

addEventListener("click", (event) => {
  const link = event.target.closest("a[data-image], a[data-prior]"), button = event.target.closest("button");
  if (link && !event.ctrlKey && !event.metaKey) { event.preventDefault(); show(link.href, { push: false, keep: true }); return; }
  if (!button) return;
  const { do: act, tool, preset: name, step: by, conflict, reveal: shows } = button.dataset;
  if (act) DO[act]();
  else if (button.dataset.region) theirs(button);
  else if (tool) choose(tool);
  else if (name) preset(name);
  else if (by) step(Number(by));
  else if (conflict) settle(conflict);
  else if (shows !== undefined) reveal();
  else if (button.id === "heat") say(toggleHeat());
});
addEventListener("change", (event) => { if (event.target.id === "finding") relabel(); });
addEventListener("input", (event) => { if (event.target.id === "opacity") say(heat(event.target.value / 100)); });
addEventListener("submit", (event) => {
  if (event.target.id !== "say") return;
  event.preventDefault();
  const isEnter = document.activeElement?.tagName === "INPUT"; // Enter in the comment is no answer
  if (event.submitter?.dataset.say && !isEnter) save(event.submitter, { next: goOn, renew: refresh });
  else toast("Choose an answer; the comment goes with it.");
});
addEventListener("popstate", () => show(location.href, { push: false }));
addEventListener("taken-back", ({ detail: study }) => { ready.delete(study); show(address(study), { push: study !== me() }); toast("Your answer is taken back."); });

keys([
  ["A", "Agree", () => answer("A")], ["D", "Disagree", () => answer("D")], ["U", "Unsure", () => answer("U")], ["P", "Pneumonia (where there is no answer)", () => answer("P")], ["N", "No pneumonia (where there is no answer)", () => answer("N")], ["C", "Comment", () => $("#comment")?.focus()],
  ["J", "Next study", () => step(1)], ["K", "Previous study", () => step(-1)], ["]", "Next image of the study", () => image(1)], ["[", "Previous image", () => image(-1)], ["E", "Earlier study beside", () => $(".shelf [data-prior]")?.click()],
  ...presets.map((name, i) => [String(i + 1), `Window: ${$(`[data-preset=${name}]`)?.dataset.word ?? name}`, () => preset(name)]),
  ["I", "Invert", DO.invert], ["R", "Turn by 90°", DO.rotate], ["F", "Fit", DO.fit], ["O", "1:1, one pixel per pixel", DO.actual], ["+ or =", "Zoom in", () => magnify(1.25)], ["-", "Zoom out", () => magnify(0.8)], ["0", "Put the view back", DO.reset],
  ["M", "Mark a region: drag, or Enter, arrows, Shift and arrows, Delete", () => choose("region")], ["W", "Window by dragging", () => choose("window")],
  ["H", "Heat map on or off", () => say(toggleHeat())], [", or ;", "Heat map fainter", () => say(moreHeat(-1))], [". or :", "Heat map stronger", () => say(moreHeat(1))],
  ["B", "Hide the model's answer until you have looked", reveal], ["V", "Open in the hospital's viewer", () => $("#viewer")?.click()],
]);
function changed(study) {
  const wasReady = ready.delete(study);
  if (study === me()) refresh();
  else if (wasReady) fetchNext();
}

function heard(...news) {
  contact(...news);
  relabel();
}

listen({ changed, poll: refresh, contact: heard });
draw().then(fetchNext);
resume();
setTimeout(() => $("#saved")?.remove(), 8000);
