// Keeps the list fresh without moving a row: changes of a row appear in place, new studies are announced and shown on demand.

import { $, $$, keys, toast } from "./shell.js";

const EVERY_MS = 5000, PATIENCE_MS = 5000;
const list = $("#list"), fresh = $("#fresh"), live = $("#live"), offline = $("#offline");
let here = 0, latest = null, lastContact = new Date();

const rows = (from = document) => $$("tr.study", from);
const clock = (at) => at.toLocaleTimeString("en-GB");

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
  move(0);
  remember();
  toast("The list is up to date.");
}

/** Put what changed into the rows that stand here; return the rows that are new. */
function merge(page) {
  const mine = new Map(rows().map((row) => [row.dataset.id, row])), added = [];
  for (const row of rows(page)) {
    const old = mine.get(row.dataset.id);
    if (!old) { added.push(row); continue; }
    if (old.innerHTML === row.innerHTML || old.contains(document.activeElement)) continue;
    old.replaceChildren(...document.importNode(row, true).childNodes);
  }
  for (const id of ["views", "counts"]) $(`#${id}`).replaceChildren(...document.importNode($(`#${id}`, page), true).childNodes);
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
  if (document.hidden) return;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!answer.ok) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    latest = page;
    if (!rows().length && rows(page).length) show(); // an empty list has no row to keep still
    else announce(merge(page));
    lastContact = new Date();
    offline.hidden = true;
    live.textContent = `Live, ${clock(lastContact)}`;
  } catch {
    offline.hidden = false;
    $("b", offline).textContent = `No connection to the node since ${clock(lastContact)}.`;
    live.textContent = "No connection";
  }
}

$("button", fresh).addEventListener("click", show);
$("button", offline).addEventListener("click", refresh);
$("select[name=sender]")?.addEventListener("change", (event) => event.target.form.requestSubmit());
keys([
  ["J or ArrowDown", "Next study", () => move(1)],
  ["K or ArrowUp", "Previous study", () => move(-1)],
  ["O", "Open the study (Enter on its name)", () => rows()[here] && $("a.open", rows()[here]).click()],
  [".", "Show new studies", show],
]);
move(0);
remember();
if (list.dataset.live === "yes") {
  live.textContent = `Live, ${clock(lastContact)}`;
  setInterval(refresh, EVERY_MS);
  addEventListener("visibilitychange", refresh);
}
