// Keeps the list fresh without moving a row: changes of a row appear in place, new studies are announced and shown on demand.

import { $, $$, ask, BACKGROUND, contact, fetchPage, keys, toast, unhide } from "./shell.js";
import { listen } from "./live.js";
import { resume } from "./undo.js";

const PAUSE_MS = 700; // many events make one question
const WAITS_S = [1, 2, 4, 8, 16]; // a busy node is asked again for a picture
const list = $("#list"), fresh = $("#fresh"), bar = $("#batch"), isLive = list.dataset.live === "yes", chosen = new Set();
// The bar of a batch is there for those who may act on one.
let here = 0, latest = null, due = null;

const rows = (from = document) => $$("tr.study", from);
const current = () => rows()[here];

function move(by) {
  const all = rows();
  if (!all.length) return;
  here = Math.max(0, Math.min(all.length - 1, here + by));
  all.forEach((row, i) => row.classList.toggle("here", i === here));
  if (!by) return;
  $("a.open", all[here]).focus({ preventScroll: true });
  all[here].scrollIntoView({ block: "nearest" });
}

function remember() { // the study page's next and previous; our ids only, nothing about a patient
  sessionStorage.order = JSON.stringify(rows().map((row) => row.dataset.id));
}

function show() {
  if (!latest) return;
  list.replaceChildren(...document.adoptNode($("#list", latest)).childNodes);
  fresh.hidden = true;
  latest = null;
  here = 0;
  settle();
  toast("The list is up to date.");
}

/** Bring what the server drew into this page's state: choices, the row under the keys, the order of reading. */
function settle() {
  unhide();
  if (bar) for (const row of rows()) $("input", row).checked = chosen.has(row.dataset.id);
  move(0);
  remember();
  batch();
}

/** Ask again for a picture that the node was too busy to draw; what it cannot draw stays away. */
async function again(image) {
  for (const waitS of WAITS_S) {
    await new Promise((resolve) => { setTimeout(resolve, 1000 * waitS * (1 + Math.random())); }); // not all of a list at once
    const answer = await fetch(image.src, { headers: BACKGROUND }).catch(() => null);
    if (!image.isConnected || (answer && !answer.ok && answer.status !== 503)) return;
    if (!answer?.ok) continue;
    image.src = image.getAttribute("src");
    return;
  }
}

/** Put what changed into the rows that stand here; return the rows that are new. */
function merge(page) {
  const mine = new Map(rows().map((row) => [row.dataset.id, row])), added = [], kept = new Set(rows(page).map((row) => row.dataset.id));
  for (const row of rows(page)) {
    const old = mine.get(row.dataset.id);
    if (!old) { added.push(row); continue; }
    for (const [i, cell] of [...row.cells].entries()) { // the box to choose by stays as it is
      if (i && old.cells[i].innerHTML !== cell.innerHTML && !old.cells[i].contains(document.activeElement)) old.cells[i].replaceChildren(...document.importNode(cell, true).childNodes);
      if (old.cells[i].className !== cell.className) old.cells[i].className = cell.className;
    }
  }
  const gone = $("[data-more]", page) ? "not among the studies shown now" : "no longer in this list"; // where a group goes on, it may stand there
  for (const row of mine.values()) if (!kept.has(row.dataset.id)) Object.assign(row.cells[row.cells.length - 1], { textContent: gone, className: "small soft" });
  for (const head of $$("[data-group]", page)) { // a count is of all its studies, shown or not
    const old = $(`[data-group="${head.dataset.group}"] .num`), now = $(".num", head);
    if (old && old.textContent !== now.textContent) old.textContent = now.textContent;
  }
  for (const id of ["views", "counts"]) {
    const old = $(`#${id}`), now = $(`#${id}`, page);
    if (old.innerHTML !== now.innerHTML && !old.contains(document.activeElement)) old.replaceChildren(...document.importNode(now, true).childNodes);
  }
  return added;
}

function announce(added) {
  fresh.hidden = !added.length;
  if (!added.length) return;
  const urgent = added.filter((row) => "urgent" in row.dataset).length;
  const text = `${added.length} new ${added.length === 1 ? "study" : "studies"}${urgent ? `, ${urgent} of them urgent,` : ""}`;
  if ($("b", fresh).textContent !== text) $("b", fresh).textContent = text;
}

async function refresh() {
  const page = await fetchPage(location.href, { background: true }).catch(() => null);
  if (!page) return;
  latest = page;
  if (!rows().length && rows(page).length) show(); // an empty list has no row to keep still
  else announce(merge(page));
}

function soon() {
  due ??= setTimeout(() => { due = null; refresh(); }, PAUSE_MS);
}

// ---- batches ----
function batch() {
  if (!bar) return;
  for (const id of chosen) if (!rows().some((row) => row.dataset.id === id)) chosen.delete(id);
  bar.hidden = !chosen.size;
  $("b", bar).textContent = `${chosen.size} chosen`;
}

/** Return the deliveries that are made again: the failed ones, from the model's newest report on; where none failed, that report's. */
function deliveries(items) {
  const current = Math.max(...items.filter((item) => !item.review_id).map((item) => item.revision)); // a reader's report has a revision of its own
  const failed = items.filter((item) => item.state === "failed" && item.revision >= current);
  return failed.length ? failed : items.filter((item) => item.revision === current);
}

const ACTS = {
  resend: { list: "deliveries", key: "delivery_id", parts: deliveries, done: ["study: its report is on its way again", "studies: their reports are on their way again"], none: "It has no report to send." },
  rerun: { list: "instances", key: "instance_id", parts: (items) => items.filter((item) => item.is_judged), done: ["study is judged again", "studies are judged again"], none: "It has no image to judge." },
};

const why = (answer) => answer.body?.detail ?? `The node answered ${answer.status}.`;

/** Act on every part of one study; returns why not, of each that was refused. */
async function actOn(name, id) {
  const { list: of, key, none, parts } = ACTS[name], found = await ask("GET", `/api/v1/${of}?study_id=${id}&limit=200`);
  if (!found.ok) return [why(found)];
  const items = parts(found.body.items);
  if (!items.length) return [none];
  const answers = await Promise.all(items.map((item) => ask("POST", `/api/v1/${of}/${item[key]}/${name}`)));
  return answers.filter((answer) => !answer.ok).map((answer, i, all) => all.length < items.length ? `A part of it: ${why(answer)}` : why(answer));
}

async function act(name) {
  const total = chosen.size, refused = new Set();
  for (const id of [...chosen]) {
    const reasons = await actOn(name, id);
    if (!reasons.length) chosen.delete(id);
    for (const reason of reasons) refused.add(reason);
  }
  const done = ACTS[name].done[total === 1 ? 0 : 1];
  toast(refused.size ? `${total - chosen.size} of ${total} ${done}. Not the others, which stay chosen: ${[...refused].join(" ")}` : `${total} ${done}.`, { seconds: 10 });
  settle();
  soon();
}

list.addEventListener("error", (event) => { if (event.target.matches("img.thumb")) again(event.target); }, true);
for (const image of $$("img.thumb", list)) if (image.complete && !image.naturalWidth && image.currentSrc) again(image); // before this ran
list.addEventListener("change", (event) => {
  const row = event.target.closest("tr.study");
  if (!row) return;
  if (event.target.checked) chosen.add(row.dataset.id);
  else chosen.delete(row.dataset.id);
  batch();
});
addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.batch) act(button.dataset.batch);
  else if ("none" in button.dataset) { chosen.clear(); settle(); }
  else if (button.id === "more-button") { const more = $("#more"); more.hidden = !more.hidden; button.setAttribute("aria-expanded", String(!more.hidden)); }
});
$("button", fresh).addEventListener("click", show);
keys([
  ["J or ArrowDown", "Next study", () => move(1)],
  ["K or ArrowUp", "Previous study", () => move(-1)],
  ["O", "Open the study (Enter on its name)", () => current() && $("a.open", current()).click()],
  ...(bar ? [["X", "Choose for a batch", () => current() && $("input", current()).click()]] : []),
  [".", "Show new studies", show],
]);
addEventListener("taken-back", () => { soon(); toast("Your answer is taken back."); });
settle();
resume();
if (isLive) listen({ changed: soon, poll: refresh, contact });
