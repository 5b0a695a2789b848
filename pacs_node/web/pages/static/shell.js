// What every page shares: the theme, the keys, words at the foot, and one way to ask the node. The server renders the
// page; this only enhances it. Nothing about a patient is kept in the browser.

export const $ = (query, from = document) => from.querySelector(query);
export const $$ = (query, from = document) => [...from.querySelectorAll(query)];

const PAGES = new Map($$(".nav a[data-key]").map((link) => [link.dataset.key, link])); // those that the caller may open
export const PATIENCE_MS = 5000;
/** Of what a page asks by itself: it does not show that the reader is there, or sees it. */
export const BACKGROUND = { "X-Background": "1" };

/** Ask the API; returns {ok, status, body, headers}, and status 0 when the node did not answer. */
export async function ask(method, url, body, headers = {}, patienceMs = 4 * PATIENCE_MS) {
  const sent = { Accept: "application/json", "X-CSRF-Token": $("meta[name=csrf-token]")?.content ?? "", ...headers };
  if (body !== undefined) sent["Content-Type"] = "application/json";
  try {
    const answer = await fetch(url, { method, headers: sent, body: body === undefined ? undefined : JSON.stringify(body), signal: AbortSignal.timeout(patienceMs) });
    if (answer.status === 401) location.href = `/login?why=over&next=${encodeURIComponent(location.pathname + location.search)}`;
    const isJson = answer.headers.get("content-type")?.includes("json");
    return { ok: answer.ok, status: answer.status, headers: answer.headers, body: isJson ? await answer.json() : null };
  } catch {
    return { ok: false, status: 0, headers: new Headers(), body: { detail: "The node did not answer. Nothing was changed that you can count on; look again before you repeat it." } };
  }
}

/** What to tell a person of an answer. */
export const why = (answer) => answer.body?.detail ?? `The node answered ${answer.status}.`;

/** Let a button say what is being done, and take no second press, until it is. */
export async function during(button, word, act) {
  const before = button.textContent;
  Object.assign(button, { disabled: true, textContent: word });
  const answer = await act();
  Object.assign(button, { disabled: false, textContent: before });
  return answer;
}

/** Fetch a page as a document, as a reader's step or by itself. */
export async function fetchPage(url, { background = false } = {}) {
  const headers = { Accept: "text/html", ...(background && BACKGROUND) };
  const answer = await fetch(url, { headers, signal: AbortSignal.timeout(PATIENCE_MS) });
  if (answer.redirected && new URL(answer.url).pathname === "/login") location.reload();
  if (!answer.ok) throw Object.assign(new Error(`status ${answer.status}`), { status: answer.status });
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

/** Say one sentence at the foot, or where the page keeps a place for it. With `undo` it stays for `seconds`, and Z takes it back; a plain one never displaces that. */
export function toast(text, { undo = null, seconds = undo ? 10 : 6 } = {}) {
  const box = document.createElement("div"), words = document.createElement("span");
  $(undo ? ".toast:not(.plain)" : ".toast.plain")?.remove();
  box.className = undo ? "toast" : "toast plain";
  box.setAttribute("role", "status");
  words.textContent = text;
  box.append(words);
  if (undo) box.append(undoButton(box, undo, seconds));
  ($("#toasts") ?? document.body).append(box);
  setTimeout(() => box.remove(), 1000 * seconds);
}

function undoButton(box, undo, seconds) {
  const button = document.createElement("button"), key = document.createElement("kbd"), left = document.createElement("span");
  [key.textContent, left.className] = ["Z", "num soft"];
  for (const e of [key, left]) e.setAttribute("aria-hidden", "true"); // the countdown is silent
  button.type = "button";
  button.dataset.undo = "";
  button.append("Undo ", key, left);
  const until = performance.now() + 1000 * seconds;
  const tick = () => { left.textContent = `${Math.max(0, Math.ceil((until - performance.now()) / 1000))} s`; if (!box.isConnected) clearInterval(timer); };
  const timer = setInterval(tick, 1000);
  tick();
  button.addEventListener("click", () => { box.remove(); undo(); });
  return button;
}

/** Install one table of keys: [key, words, action]. Silent while typing; can be switched off (WCAG 2.1.4). */
export function keys(table) {
  const all = [
    ...table,
    ...$$("input[type=search]").slice(0, 1).map((box) => ["/", "Search", () => box.focus()]),
    ["Z", "Undo, for 10 seconds", () => $("[data-undo]")?.click()],
    ...(PAGES.size ? [[`G then ${[...PAGES.keys()].join(", ").toUpperCase()}`, `Go to ${[...PAGES.values()].map((link) => link.textContent.toLowerCase()).join(", ")}`, null]] : []),
    ["?", "Show these keys", () => $("#keys").showModal()],
  ];
  for (const [key, words] of all) {
    const item = document.createElement("li"), name = document.createElement("span"), cap = document.createElement("kbd");
    [name.textContent, cap.textContent] = [words, key];
    item.append(name, cap);
    $("#keys ul").append(item);
  }
  let isGoing = false;
  addEventListener("keydown", (event) => {
    const isTyping = event.target.closest?.("input:not([type=checkbox], [type=range]), textarea, select, dialog");
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey || localStorage.keys === "off") return;
    const key = event.key.toLowerCase(), page = isGoing && PAGES.get(key);
    isGoing = key === "g";
    if (page) { location.href = page.href; return; }
    const hit = all.find(([names, , act]) => act && names.split(" or ").some((name) => name.toLowerCase() === key));
    if (!hit || (event.repeat && !["j", "k", "+", "-", "=", "arrowdown", "arrowup"].includes(key))) return; // a held key answers once
    event.preventDefault();
    hit[2](event);
  });
}

/** Say when the node was last heard, by itself or asked; show or take away the banner that says since when it is silent. */
export function contact(lastContact, isThere, isLive) {
  const banner = $("#offline"), live = $("#live"), at = lastContact.toLocaleTimeString("en-GB");
  live.textContent = isThere ? `${isLive ? "Live" : "Asked"}, ${at}` : `No connection since ${at}`;
  document.body.classList.toggle("offline", !isThere);
  if (!banner) return;
  banner.hidden = isThere;
  if (!isThere) $("b", banner).textContent = `No connection to the node since ${at}.`;
}

function theme() {
  const root = document.documentElement, button = $("#theme");
  if (localStorage.theme) root.dataset.theme = localStorage.theme;
  const name = () => { button.textContent = root.dataset.theme === "light" ? "Dark theme" : "Light theme"; };
  button.addEventListener("click", () => { root.dataset.theme = localStorage.theme = root.dataset.theme === "light" ? "dark" : "light"; name(); });
  name();
}

function dialog() {
  $("#help").addEventListener("click", () => $("#keys").showModal());
  const on = $("#keys-on");
  on.checked = localStorage.keys !== "off";
  on.addEventListener("change", () => { localStorage.keys = on.checked ? "on" : "off"; });
}

/** What does nothing without modules is hidden until now. */
export const unhide = () => { for (const e of $$("[data-script]")) e.hidden = false; };

theme();
dialog();
unhide();
