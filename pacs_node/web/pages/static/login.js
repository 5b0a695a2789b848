// Shows what is typed where the reader asks for it; everything else of the door works without script.
try { document.documentElement.dataset.theme = localStorage.getItem("theme") ?? "dark"; } catch { /* storage is off: dark */ }
for (const box of document.querySelectorAll("[data-shows]")) {
  box.closest("[data-script]").hidden = false;
  const fields = box.dataset.shows.split(" ").map((name) => document.querySelector(`[name="${name}"]`));
  box.addEventListener("change", () => { for (const field of fields) field.type = box.checked ? "text" : "password"; });
}
document.querySelector("input:not([type=hidden])")?.focus();
