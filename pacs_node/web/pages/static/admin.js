// The administrator's buttons. What cannot be taken back asks first, and names its consequence on the button.

import { $, $$, BACKGROUND, ask, during, keys, toast, why } from "./shell.js";
import { confirmed, entrusted } from "./confirm.js";

const EXPORT_LOOK_MS = 2000, LONG_MS = 300_000, EVENTS = 40;

/** Show a secret once. */
function reveal(title, secret) {
  $("#shown-title").textContent = title;
  $("#shown-secret").textContent = secret;
  $("#shown").showModal();
  return new Promise((done) => { $("#shown").onclose = done; });
}

const DO = {
  async retry(button, id) {
    const answer = await during(button, "asking …", () => ask("POST", `/api/v1/jobs/${id}/retry`));
    if (!answer.ok) return toast(why(answer));
    button.closest("td").textContent = "ready again";
    toast("The job is ready again; a worker takes it next.");
  },
  async close(button, id) {
    const answer = await entrusted("Close this job without doing it?", "What it should have done stays marked as failed, and the images of its study may be purged after the retention time. Your name and reason go to the audit trail.", "Close it",
      (given) => during(button, "closing …", () => ask("POST", `/api/v1/jobs/${id}/close`, { reason: given.get("reason") })), { fields: ["ask-reason"] });
    if (!answer?.ok) return refused(answer);
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
    const locked = button.dataset.locked === "no", { name } = button.dataset;
    const [title, text, word] = locked
      ? [`Lock ${name}?`, "The person is logged out everywhere at once and cannot log in until you unlock the account.", "Lock"]
      : [`Unlock ${name}?`, "The person can log in again, as before.", "Unlock"];
    changed(await entrusted(title, text, word, () => ask("PATCH", `/api/v1/accounts/${id}`, { locked })));
  },
  async grant(button, id) {
    const { name, roles, groups } = button.dataset, chosen = { role: roles.split(" "), group: groups.split(" ") };
    changed(await entrusted(`What may ${name} do?`, "It counts at once, wherever the person is logged in.", "Change",
      (given) => ask("PATCH", `/api/v1/accounts/${id}`, grants(given)), { fields: ["ask-grants"], chosen }));
  },
  async link(button, id) {
    const answer = await entrusted(`A new link for ${button.dataset.name}?`, "With it the person chooses a new password. An earlier link that was not used ends.", "Make the link",
      () => ask("POST", `/api/v1/accounts/${id}/link`));
    if (!answer?.ok) return refused(answer);
    await reveal(`The link for ${button.dataset.name}`, answer.body.link);
  },
  async activate(button, model) {
    const lifted = button.dataset.recalled === "yes" ? " It was recalled: that is lifted." : "";
    changed(await entrusted(`Let ${button.dataset.name} answer?`, `Its weights are checked first. From then on its answers go to the PACS; what the present version said, and what was read of it, stays as it is. It was validated on patients of ${button.dataset.ages}.${lifted} You are recorded as the person who approved this.`, "Make active",
      () => during(button, "checking …", () => ask("POST", `/api/v1/models/${model}/activate`, undefined, {}, LONG_MS))));
  },
  async rollback(button, model) {
    const [name, version] = model.split("/");
    changed(await entrusted(`Roll back to ${button.dataset.name}?`, `It answered before the present version, and answers again once its weights are checked. It was validated on patients of ${button.dataset.ages}. What the present version said stays, until you recall it. You are recorded as the person who did this.`, "Roll back",
      () => during(button, "checking …", () => ask("POST", "/api/v1/models/rollback", { to: { name, version } }, {}, LONG_MS))));
  },
  async recall(button, model) {
    const url = `/api/v1/models/${model}/recall`;
    const foretold = await during(button, "counting …", () => ask("POST", url, { dry_run: true }, {}, LONG_MS));
    if (!foretold.ok) return toast(why(foretold));
    const done = await entrusted(`Take back what ${button.dataset.name} said?`, `${recalled(foretold.body)} This cannot be taken back.`, "Recall",
      () => during(button, "recalling …", () => ask("POST", url, { dry_run: false }, {}, LONG_MS)));
    if (!done?.ok) return refused(done);
    $("[data-state]", button.closest("tr")).textContent = "recalled: what it said is taken back";
    toast(recalled(done.body), { seconds: 20 });
  },
  older: (button, cursor) => events(cursor),
  async training(button) {
    const text = `De-identified by PS3.15: dates shifted per patient, UIDs replaced, images with burned-in text left out. The export is recorded with your name. ${button.dataset.reviewed} studies are reviewed.`;
    const answer = await entrusted("Export reviews for training?", text, "Export", (wanted) => {
      const day = wanted.get("since"), since = day ? { since: new Date(`${day}T00:00`).toISOString() } : {};
      return ask("POST", "/api/v1/exports/training", { ...since, accept_unstated: wanted.has("unstated") });
    }, { fields: ["ask-export"] });
    if (!answer?.ok) return refused(answer);
    followExport();
  },
  async add(button, kind) {
    const isToken = kind === "token";
    const [title, text, word] = isToken
      ? ["A new API token", "For a program; it ends after a year.", "Make the token"]
      : ["A new user", "You get a link by which the person chooses a password.", "Add the user"];
    const answer = await entrusted(title, text, word,
      (given) => ask("POST", isToken ? "/api/v1/tokens" : "/api/v1/accounts", { name: given.get("name"), ...grants(given) }), { fields: ["ask-name", "ask-grants"] });
    if (!answer?.ok) return refused(answer);
    await reveal(isToken ? `The token ${answer.body.token.name}` : `The link for ${answer.body.account.name}`, answer.body.secret ?? answer.body.link);
    location.reload();
  },
};

/** Roles and groups as they are ticked. */
const grants = (given) => ({ roles: given.getAll("role"), groups: given.getAll("group") });

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
  if (answer?.ok) location.reload();
  else refused(answer);
}

/** Say why the node did not do it; nothing where the person did not want it. */
function refused(answer) {
  if (answer) toast(why(answer));
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
const roles = $$("#ask-grants [name=role]");
$("#ask-grants").addEventListener("change", () => roles[0].setCustomValidity(roles.some((box) => box.checked) ? "" : "Choose at least one role."));
$("#ask form").addEventListener("reset", () => roles[0].setCustomValidity(""));
for (const time of $$("#events time")) stamp(time);
keys([]);
if ($("#training").dataset.state === "running") followExport();
