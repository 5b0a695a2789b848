// The film on the light box: the chosen image, an earlier one beside it, the tools of the bench, the heat map, and the
// region that a reader marks.

import { $, $$, BACKGROUND } from "./shell.js";
import { read } from "./greys.js";
import { LightBox, PRESETS, SIZES } from "./viewer.js";

const SEEN_MS = 600; // no answer to a radiograph that was not on the screen
const LATE_MS = 5000, LONGEST_MS = 45_000, BUSY_MS = 1000; // a film is late; given up; asked for again of a busy node
const HEAT = 0.55, FAINTEST = 0.1, STEP = 0.1;
const SENT = { window: "as sent", lut: "as sent, by its LUT", displayed: "as sent", percentile: "the image states no window" };
const room = { light: null, beside: null, readyAt: Infinity, tool: "window", heat: 0, heatImage: null, asking: null, study: null, region: null, theirs: null, looks: 0 };

/** Fetch a radiograph with its grey levels, drawn from the stored pixels; or throw what the node said about it. */
export async function filmAt(url, { window = null, size = SIZES[0], signal = null, background = false } = {}) {
  const asked = new URL(url, location.href);
  asked.searchParams.set("size", size);
  if (window) { asked.searchParams.set("center", window.centre); asked.searchParams.set("width", window.width); }
  const { picture, said } = await reached(asked, { signal, headers: background ? BACKGROUND : {} });
  const bitmap = await createImageBitmap(picture, { colorSpaceConversion: "none" });
  return { ...read(bitmap, said, size), url };
}

/** Return a picture and what the node says of it, or throw why there is none; a node that is busy is asked once more. */
async function reached(url, { signal = null, headers = {}, isLast = false } = {}) {
  const asking = new AbortController(), stop = () => asking.abort(); // no AbortSignal.any: browsers of early 2023 read here too
  let isLate = false, answer;
  const limit = setTimeout(() => { isLate = true; stop(); }, LONGEST_MS);
  signal?.addEventListener("abort", stop);
  if (signal?.aborted) stop();
  try {
    answer = await fetch(url, { headers, signal: asking.signal });
    if (answer.ok) return { picture: await answer.blob(), said: answer.headers.get("VOI-Window") };
  } catch {
    throw new Error(isLate ? `The node did not answer within ${LONGEST_MS / 1000} seconds. The file is kept.` : "The node did not answer. The file is kept.");
  } finally {
    clearTimeout(limit);
    signal?.removeEventListener("abort", stop);
  }
  if (answer.status === 503 && !isLast) {
    await new Promise((resolve) => { setTimeout(resolve, BUSY_MS); });
    return reached(url, { signal, headers, isLast: true });
  }
  const problem = await answer.json().catch(() => null);
  throw new Error(problem?.detail ?? `The node answered ${answer.status}. The file is kept.`);
}

/** Return a decoded heat map, or throw what the node said about it. */
async function heatAt(url) {
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    await reached(url);
    throw new Error("The heat map cannot be shown.");
  }
  return image;
}

/** Tell whether the radiograph has been on the screen long enough to be answered. */
export const isSeen = () => performance.now() >= room.readyAt;
/** What stands beside the radiograph has changed: it must be seen again before it is answered, and its heat map is another one. */
export function lookAgain() {
  if (room.readyAt !== Infinity) room.readyAt = performance.now() + SEEN_MS;
  room.heatImage = null;
  room.looks += 1;
  hideHeat();
}
const address = (box) => box?.dataset.src ?? "";

function tell(box) {
  const words = $("[data-values]", box.closest(".light"));
  return (light) => {
    const { greys, turn, why } = light, { own } = greys;
    const written = (value) => own.width >= 20 ? Math.round(value) : Number(value.toPrecision(3));
    const doubt = why ? `approximate: ${why}` : "approximate";
    const parts = [
      `centre ${written(greys.centre)}, width ${written(greys.width)}${own.unit && ` ${own.unit}`}`, greys.isSent && SENT[own.voi], !greys.isExact && doubt,
      `${Math.round(light.zoom * devicePixelRatio * 100)} %`, greys.isInverted && "inverted", turn && `turned ${turn}°`,
    ];
    words.textContent = parts.filter(Boolean).join(", ");
    words.dataset.exact = greys.isExact ? "yes" : "no";
  };
}

const instead = new WeakMap(); // box -> the message that stands in its place

/** Say in place of a picture why it is not there, with a second try. */
function refuse(box, sentence, again) {
  const known = instead.get(box), light = box.closest(".light"), wasHeld = box === document.activeElement;
  const message = known ?? $("template", light).content.firstElementChild.cloneNode(true);
  $("p", message).textContent = sentence;
  if (known) return;
  instead.set(box, message);
  $("[data-values]", light).textContent = "";
  $("button", message).addEventListener("click", () => { putBack(box); again(); });
  box.replaceWith(message);
  if (wasHeld) $("button", message).focus();
}

function putBack(box) {
  const message = instead.get(box), isHeld = message?.contains(document.activeElement);
  if (!instead.delete(box)) return;
  message.replaceWith(box);
  $("[data-values]", box.closest(".light")).textContent = "Loading …";
  if (isHeld) box.focus({ preventScroll: true });
}

/** Return the film of a box; `ahead` is one on its way. When it is late its reader hears so, and may ask again. */
async function awaited(box, again, signal, ahead = null) {
  const late = setTimeout(() => refuse(box, `The node has not answered for ${LATE_MS / 1000} seconds. The film is shown as soon as it comes.`, again), LATE_MS);
  try {
    const come = await ahead, film = come?.url === address(box) ? come : await filmAt(address(box), { signal });
    signal.throwIfAborted(); // the reader has gone on
    putBack(box);
    return film;
  } finally {
    clearTimeout(late);
  }
}

function lightBox(box, marked) {
  const light = new LightBox(box, { source: (window, size, signal) => filmAt(address(box), { window, size, signal }), changed: tell(box), marked });
  light.tool = room.tool;
  return light;
}

/** Hang what the page names; `ahead` is a film that was fetched before it was asked for, or is on its way. */
export async function hang(ahead = null) {
  const box = $("#film"), asked = $("#main").dataset.study;
  room.asking?.abort();
  const { signal } = room.asking = new AbortController();
  Object.assign(room, { light: null, beside: null, readyAt: Infinity, heat: 0, heatImage: null });
  if (room.study !== asked && room.tool === "region") room.tool = "window"; // a drag never marks by surprise
  room.study = asked;
  if (room.region?.study !== asked) room.region = null;
  if (room.theirs?.study !== asked) room.theirs = null;
  $("#bench").hidden = !box;
  bench();
  if (!box) return;
  try {
    const film = await awaited(box, () => hang(), signal, ahead);
    room.light = lightBox(box, outlined);
    room.light.show(film);
    showMarks();
    room.readyAt = performance.now() + SEEN_MS;
    bench();
  } catch (error) {
    if (!signal.aborted) refuse(box, error.message, () => hang());
    return;
  }
  const earlier = $("#earlier-film");
  if (earlier) await hangBeside(earlier, signal);
}

async function hangBeside(box, signal) {
  const again = () => hangBeside(box, signal);
  try {
    const film = await awaited(box, again, signal);
    if (room.beside) return; // asked for twice
    room.beside = lightBox(box);
    room.beside.show(film);
  } catch (error) {
    if (!signal.aborted) refuse(box, error.message, again);
  }
}

const both = (act) => [room.light, room.beside].filter(Boolean).forEach(act);
const canExplain = () => Boolean(room.light && $("#film")?.dataset.heat && !document.documentElement.classList.contains("blind"));

function bench() {
  for (const b of $$("[data-tool]")) b.setAttribute("aria-pressed", String(b.dataset.tool === room.tool));
  const button = $("#heat"), slider = $("#opacity"), key = $("[data-heatkey]");
  button.disabled = !canExplain();
  button.setAttribute("aria-pressed", String(room.heat > 0));
  slider.disabled = !room.heat;
  slider.value = Math.round(100 * (room.heat || HEAT));
  if (key) key.hidden = !room.heat;
  tellRegion();
}

/** Show the heat map with this opacity, 0 = not at all; returns a sentence when it cannot be shown. */
export async function heat(opacity) {
  const { light, looks } = room;
  if (!canExplain()) return "There is no heat map for this image.";
  if (opacity && !room.heatImage) {
    try {
      const image = await heatAt($("#film").dataset.heat);
      if (light !== room.light || looks !== room.looks) return "";
      room.heatImage = image;
    } catch (error) {
      return error.message;
    }
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

// ---- regions: the reader's own goes with the answer; another reader's is drawn on demand ----
const shownImage = () => $("#film")?.dataset.instance;

function outlined(box) {
  room.region = box && { study: $("#main").dataset.study, instance_id: shownImage(), name: $("#film").dataset.name, box };
  tellRegion();
}

function showMarks() {
  const of = (region) => (region?.instance_id === shownImage() ? region.box : null);
  room.light?.mark({ mine: of(room.region), theirs: of(room.theirs) });
}

function tellRegion() {
  const note = $("#region-note");
  if (note) {
    note.hidden = !room.region;
    $("[data-words]", note).textContent = room.region ? `A region on ${room.region.name} goes with your answer.` : "";
  }
  for (const b of $$("[data-region]")) b.setAttribute("aria-pressed", String(b.dataset.region === room.theirs?.review));
}

/** Return the region that goes with the answer, as the API takes it; null = none. */
export const regionOfAnswer = () => room.region && { instance_id: room.region.instance_id, ...room.region.box };

export function dropRegion() {
  room.region = null;
  room.light?.mark({ mine: null });
  tellRegion();
}

/** Show or hide the region of another reader's word; true = its image hangs, else it has to be hung first. */
export function toggleTheirs({ region: review, instance, box }) {
  const [left, top, right, bottom] = box.split(" ").map(Number);
  room.theirs = room.theirs?.review === review ? null : { study: $("#main").dataset.study, review, instance_id: instance, box: { left, top, right, bottom } };
  showMarks();
  tellRegion();
  return !room.theirs || instance === shownImage();
}

export const DO = {
  invert: () => both((l) => l.invert()),
  rotate: () => room.light?.rotate(),
  fit: () => both((l) => l.fit()),
  actual: () => both((l) => l.actual()),
  reset: () => both((l) => l.reset()),
  unmark: dropRegion,
};
export const magnify = (factor) => room.light?.magnify(factor);
export const preset = (name) => both((l) => l.preset(name));
export const presets = Object.keys(PRESETS);

export function choose(tool) {
  room.tool = tool;
  both((l) => { l.tool = tool; });
  if (tool === "region") $("#film")?.focus({ preventScroll: true }); // the keys of the region are the film's
  bench();
}
