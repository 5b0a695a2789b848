// What every page shares: the theme, the keys, one polite message at the foot. The server renders the page; this only enhances it.

export const $ = (query, from = document) => from.querySelector(query);
export const $$ = (query, from = document) => [...from.querySelectorAll(query)];

/** Say one sentence at the foot for a few seconds. */
export function toast(text, seconds = 6) {
  $(".toast")?.remove();
  const box = document.createElement("div");
  box.className = "toast";
  box.setAttribute("role", "status");
  box.textContent = text;
  document.body.append(box);
  setTimeout(() => box.remove(), 1000 * seconds);
}

/** Install one table of keys: [key, words, action]. Silent while typing; can be switched off (WCAG 2.1.4). */
export function keys(table) {
  const all = [
    ...table,
    ...$$("input[type=search]").map((box) => ["/", "Search", () => box.focus()]),
    ["W", "Go to the worklist", () => { location.href = "/"; }],
    ["?", "Show these keys", () => $("#keys").showModal()],
  ];
  for (const [key, words] of all) {
    const item = document.createElement("li"), name = document.createElement("span"), cap = document.createElement("kbd");
    [name.textContent, cap.textContent] = [words, key];
    item.append(name, cap);
    $("#keys ul").append(item);
  }
  addEventListener("keydown", (event) => {
    const isTyping = event.target.closest("input:not([type=checkbox]), textarea, select, dialog");
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey || localStorage.keys === "off") return;
    const hit = all.find(([key]) => key.split(" or ").some((k) => k.toLowerCase() === event.key.toLowerCase()));
    if (!hit || (event.repeat && !["j", "k"].includes(event.key))) return;
    event.preventDefault();
    hit[2](event);
  });
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

theme();
dialog();
for (const e of $$("[data-script]")) e.hidden = false; // what does nothing without modules is hidden until now
