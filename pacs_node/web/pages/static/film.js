// The film on the light box: the chosen image, an earlier one beside it, the tools of the bench, the heat map, and the
// region that a reader marks.

import { $, $$ } from "./shell.js";
import { read } from "./greys.js";
import { LightBox, PRESETS, SIZES } from "./viewer.js";

const SEEN_MS = 600; // no answer to a radiograph that was not on the screen
const HEAT = 0.85, FAINTEST = 0.1, STEP = 0.1;
const SENT = { window: "as sent", lut: "as sent, by its LUT", displayed: "as sent", percentile: "the image states no window" };
const room = { light: null, beside: null, readyAt: Infinity, tool: "window", heat: 0, heatImage: null, study: null, region: null, theirs: null };

/** Fetch a radiograph with its grey levels, drawn from the stored pixels; or throw what the node said about it. */
export async function filmAt(url, window = null, size = SIZES[0], signal = undefined) {
  const asked = new URL(url, location.href);
  asked.searchParams.set("size", size);
  if (window) { asked.searchParams.set("center", window.centre); asked.searchParams.set("width", window.width); }
  const answer = await reached(asked, signal);
  const bitmap = await createImageBitmap(await answer.blob(), { colorSpaceConversion: "none" });
  return { ...read(bitmap, answer.headers.get("VOI-Window"), size), url };
}

async function reached(url, signal) {
  let answer;
  try {
    answer = await fetch(url, { signal });
  } catch {
    throw new Error("The node did not answer. The file is kept.");
  }
  if (answer.ok) return answer;
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
/** What stands beside the radiograph has changed: it must be seen again before it is answered. */
export const lookAgain = () => { if (room.readyAt !== Infinity) room.readyAt = performance.now() + SEEN_MS; };
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

function refuse(box, sentence) {
  const light = box.closest(".light"), message = $("template", light).content.cloneNode(true);
  $("p", message).textContent = sentence;
  box.replaceWith(message);
}

function lightBox(box, marked) {
  const light = new LightBox(box, { source: (window, size, signal) => filmAt(address(box), window, size, signal), changed: tell(box), marked });
  light.tool = room.tool;
  return light;
}

/** Hang what the page names; `ready` is a film that was fetched before it was asked for. */
export async function hang(ready = null) {
  const box = $("#film"), asked = $("#main").dataset.study;
  Object.assign(room, { light: null, beside: null, readyAt: Infinity, heat: 0, heatImage: null });
  if (room.study !== asked && room.tool === "region") room.tool = "window"; // a drag never marks by surprise
  room.study = asked;
  if (room.region?.study !== asked) room.region = null;
  if (room.theirs?.study !== asked) room.theirs = null;
  $("#bench").hidden = !box;
  bench();
  if (!box) return;
  try {
    const film = ready?.url === address(box) ? ready : await filmAt(address(box));
    if (asked !== $("#main").dataset.study || !box.isConnected) return; // the reader has gone on
    room.light = lightBox(box, outlined);
    room.light.show(film);
    showMarks();
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
    const film = await filmAt(address(box));
    if (!box.isConnected) return;
    room.beside = lightBox(box);
    room.beside.show(film);
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
  tellRegion();
}

/** Show the heat map with this opacity, 0 = not at all; returns a sentence when it cannot be shown. */
export async function heat(opacity) {
  const { light } = room;
  if (!canExplain()) return "There is no heat map for this image.";
  if (opacity && !room.heatImage) {
    try {
      room.heatImage = await heatAt($("#film").dataset.heat);
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
