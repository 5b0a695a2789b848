// The administrator's buttons. What cannot be taken back asks first, and names its consequence on the button.

import { $, $$, BACKGROUND, ask, keys, toast } from "./shell.js";

const EXPORT_LOOK_MS = 2000, LONG_MS = 300_000, EVENTS = 40;

/** Ask in a dialog; returns the form's fields, or null. */
function confirmed(title, text, yes, { fields = "" } = {}) {
  const dialog = $("#ask");
  [$("#ask-title").textContent, $("#ask-text").textContent, $("#ask-yes").textContent] = [title, text, yes];
  for (const id of ["ask-fields", "ask-reason", "ask-export"]) $(`#${id}`).hidden = id !== fields;
  $("form", dialog).reset();
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((done) => {
    dialog.onclose = () => done(dialog.returnValue === "yes" ? Object.fromEntries(new FormData($("form", dialog))) : null);
  });
}

// Enter in a field says yes; without this the browser presses the first button, which is Cancel.
$("#ask").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !event.target.matches("input:not([type=checkbox])")) return;
  event.preventDefault();
  $("#ask-yes").click();
});

/** Show a secret once. */
function reveal(title, secret) {
  $("#shown-title").textContent = title;
  $("#shown-secret").textContent = secret;
  $("#shown").showModal();
  return new Promise((done) => { $("#shown").onclose = done; });
}

async function during(button, word, act) {
  const before = button.textContent;
  Object.assign(button, { disabled: true, textContent: word });
  const answer = await act();
  Object.assign(button, { disabled: false, textContent: before });
  return answer;
}

const why = (answer) => answer.body?.detail ?? `The node answered ${answer.status}.`;

const DO = {
  async retry(button, id) {
    const answer = await during(button, "asking …", () => ask("POST", `/api/v1/jobs/${id}/retry`));
    if (!answer.ok) return toast(why(answer));
    button.closest("td").textContent = "ready again";
    toast("The job is ready again; a worker takes it next.");
  },
  async close(button, id) {
    const given = await confirmed("Close this job without doing it?", "What it should have done stays marked as failed, and the images of its study may be purged after the retention time. Your name and reason go to the audit trail.", "Close it", { fields: "ask-reason" });
    if (!given) return;
    const answer = await during(button, "closing …", () => ask("POST", `/api/v1/jobs/${id}/close`, { reason: given.reason }));
    if (!answer.ok) return toast(why(answer));
    button.closest("td").textContent = "closed";
    toast("The job is closed.");
  },
  async echo(button, name) {
    const answer = await during(button, "asking …", () => ask("POST", `/api/v1/destinations/${encodeURIComponent(name)}/echo`));
    $("[data-seen]", button.closest("tr")).textContent = answer.ok ? `${answer.body.state}, just now` : "";
    toast(why(answer));
  },
  async chain(button) {
    const answer = await during(button, "checking …", () => ask("POST", "/api/v1/audit/verify"));
    $("#chain").textContent = why(answer);
    $("#chain").className = answer.ok && answer.body.unbroken ? "" : "bad strong";
  },
  async revoke(button, id) {
    if (!await confirmed(`Revoke ${button.dataset.name}?`, "The program that uses it stops at once. This cannot be taken back.", "Revoke")) return;
    changed(await ask("DELETE", `/api/v1/tokens/${id}`));
  },
  async lock(button, id) {
    const locked = button.dataset.locked === "no";
    if (locked && !await confirmed(`Lock ${button.dataset.name}?`, "The person is logged out everywhere at once and cannot log in until you unlock the account.", "Lock")) return;
    changed(await ask("PATCH", `/api/v1/accounts/${id}`, { locked }));
  },
  async link(button, id) {
    if (!await confirmed(`A new link for ${button.dataset.name}?`, "With it the person chooses a new password. An earlier link that was not used ends.", "Make the link")) return;
    const answer = await ask("POST", `/api/v1/accounts/${id}/link`);
    if (!answer.ok) return toast(why(answer));
    await reveal(`The link for ${button.dataset.name}`, answer.body.link);
  },
  async activate(button, model) {
    const lifted = button.dataset.recalled === "yes" ? " It was recalled: that is lifted." : "";
    if (!await confirmed(`Let ${button.dataset.name} answer?`, `Its weights are checked first. From then on its answers go to the PACS; what the present version said, and what was read of it, stays as it is. It was validated on patients of ${button.dataset.ages}.${lifted} You are recorded as the person who approved this.`, "Make active")) return;
    changed(await during(button, "checking …", () => ask("POST", `/api/v1/models/${model}/activate`, undefined, {}, LONG_MS)));
  },
  async rollback(button, model) {
    if (!await confirmed(`Roll back to ${button.dataset.name}?`, `It answered before the present version, and answers again once its weights are checked. It was validated on patients of ${button.dataset.ages}. What the present version said stays, until you recall it. You are recorded as the person who did this.`, "Roll back")) return;
    const [name, version] = model.split("/");
    changed(await during(button, "checking …", () => ask("POST", "/api/v1/models/rollback", { to: { name, version } }, {}, LONG_MS)));
  },
  async recall(button, model) {
    const url = `/api/v1/models/${model}/recall`;
    const foretold = await during(button, "counting …", () => ask("POST", url, { dry_run: true }, {}, LONG_MS));
    if (!foretold.ok) return toast(why(foretold));
    if (!await confirmed(`Take back what ${button.dataset.name} said?`, `${recalled(foretold.body)} This cannot be taken back.`, "Recall")) return;
    const done = await during(button, "recalling …", () => ask("POST", url, { dry_run: false }, {}, LONG_MS));
    if (!done.ok) return toast(why(done));
    $("[data-state]", button.closest("tr")).textContent = "recalled: what it said is taken back";
    toast(recalled(done.body), { seconds: 20 });
  },
  older: (button, cursor) => events(cursor),
  async training(button) {
    const text = `De-identified by PS3.15: dates shifted per patient, UIDs replaced, images with burned-in text left out. The export is recorded with your name. ${button.dataset.reviewed} studies are reviewed.`;
    const wanted = await confirmed("Export reviews for training?", text, "Export", { fields: "ask-export" });
    if (!wanted) return;
    const since = wanted.since ? { since: new Date(`${wanted.since}T00:00`).toISOString() } : {};
    const answer = await ask("POST", "/api/v1/exports/training", { ...since, accept_unstated: "unstated" in wanted });
    if (!answer.ok) return toast(why(answer));
    followExport();
  },
  async add(button, kind) {
    const isToken = kind === "token";
    const wanted = await confirmed(isToken ? "A new API token" : "A new user", isToken ? "For a program; it ends after a year." : "You get a link by which the person chooses a password.", isToken ? "Make the token" : "Add the user", { fields: "ask-fields" });
    if (!wanted) return;
    const answer = await ask("POST", isToken ? "/api/v1/tokens" : "/api/v1/accounts", { name: wanted.name, roles: [wanted.role] });
    if (!answer.ok) return toast(why(answer));
    await reveal(isToken ? `The token ${wanted.name}` : `The link for ${wanted.name}`, answer.body.secret ?? answer.body.link);
    location.reload();
  },
};

/** Say what a recall comes to, in its counts. */
function recalled({ dry_run: isDry, recalled, replaced, noted, judged_anew, awaited, left }) {
  const be = isDry ? " would be" : "";
  const said = [`${count(recalled, "report")}${be} recalled, ${replaced} of them judged anew and replaced; ${count(judged_anew, "image")}${be} judged anew; ${count(noted, "rejection note")}.`];
  if (awaited) said.push(`${awaited} recalled earlier: the replacement is on its way.`);
  for (const [name, n] of Object.entries(left)) said.push(`${name}: ${count(n, "result")} ${n === 1 ? "stays" : "stay"} there; take them out by hand.`);
  return said.join(" ");
}

const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

/** What the trail is asked: the day `until` is included. */
function sought() {
  const { since, until, ...rest } = Object.fromEntries(new FormData($("#audit-search")));
  const day = (text, more) => { const [y, m, d] = text.split("-"); return new Date(y, m - 1, Number(d) + more).toISOString(); };
  const asked = { ...rest, since: since && day(since, 0), until: until && day(until, 1) };
  return new URLSearchParams(Object.entries(asked).map(([name, value]) => [name, value.trim()]).filter(([, value]) => value));
}

let asked = new URLSearchParams();

/** Show the events that are asked for, or the page that follows `cursor` below those that stand there. */
async function events(cursor = "") {
  const button = $("[data-older]"), part = new URLSearchParams([["limit", EVENTS], ...(cursor ? [["cursor", cursor]] : []), ...asked]);
  const answer = await during(button, "asking …", () => ask("GET", `/api/v1/audit?${part}`));
  if (!answer.ok) return toast(answer.body.errors ? `${answer.body.errors[0].where}: ${answer.body.errors[0].rule}` : why(answer));
  const rows = answer.body.items.map(eventRow);
  cursor ? $("#events").append(...rows) : $("#events").replaceChildren(...rows);
  button.dataset.older = answer.body.next_cursor ?? "";
  button.hidden = !answer.body.next_cursor;
  const n = $("#events").rows.length;
  $("#found").textContent = n ? `${count(n, "event")}, the newest first.${answer.body.next_cursor ? "" : " There are no older ones."}` : "No event is like this.";
}

function eventRow(event) {
  const row = document.createElement("tr"), at = document.createElement("time");
  at.dateTime = event.at;
  const cells = [[at, "num soft nowrap"], [event.actor, ""], [`${event.action}${event.action === "job_closed" ? `: ${event.details.reason}` : ""}`.replaceAll("_", " "), ""], [event.subject_id ?? "", "num soft small"], [event.details.from ?? "", "num soft"]];
  for (const [content, look] of cells) { const cell = row.insertCell(); cell.append(content); cell.className = look; }
  stamp(at);
  return row;
}

/** Write an event's time in full, in the zone of whoever reads it. */
function stamp(time) { time.textContent = new Date(time.dateTime).toLocaleString("sv-SE"); }

/** Say where the export stands until it stands still. */
async function followExport() {
  const place = $("#training"), button = $("[data-training]"), file = $("#training-file");
  const words = { none: () => "", running: () => "The export is being made. You may leave this page.", failed: (e) => `The export was not made. ${e.said.join(" ")}`, ready: (e) => `${e.name} is ready. ${e.said.join(" ")}` };
  for (;;) {
    const answer = await ask("GET", "/api/v1/exports/training", undefined, BACKGROUND);
    const state = answer.ok ? answer.body.state : "none", text = answer.ok ? words[state](answer.body) : why(answer);
    if (place.textContent !== text) place.textContent = text;
    Object.assign(place.dataset, { state });
    place.className = state === "failed" || !answer.ok ? "bad strong" : "";
    button.disabled = state === "running";
    file.hidden = state !== "ready";
    if (state !== "running") return;
    await new Promise((done) => { setTimeout(done, EXPORT_LOOK_MS); });
  }
}

function changed(answer) {
  if (answer.ok) location.reload();
  else toast(why(answer));
}

addEventListener("click", (event) => {
  const button = event.target.closest("button");
  const name = button && Object.keys(DO).find((key) => key in button.dataset);
  if (name) DO[name](button, button.dataset[name]);
});
$("#audit-search").addEventListener("submit", (event) => {
  event.preventDefault();
  asked = sought();
  $("#audit-export").href = `/api/v1/exports/audit?${new URLSearchParams([["format", "csv"], ...asked])}`;
  events();
});
for (const time of $$("#events time")) stamp(time);
keys([]);
if ($("#training").dataset.state === "running") followExport();
