// Before what cannot be taken back, or reaches far: a dialog that names the consequence on its button, and asks the
// person's password where the node wants it anew. Nothing typed is kept.

import { $, $$, ask, during, why } from "./shell.js";

const PASSWORD = "/api/v1/session/password", WANTED = "urn:pacs-node:password-wanted";
const dialog = $("#ask"), form = $("form", dialog), yes = $("#ask-yes"), typed = $("#ask-password input[type=password]"), fault = $("#ask-fault");

/**
 * Ask in the dialog; returns the form's data, or null.
 * `fields` are the ids of what is asked beside, `chosen` its boxes that are ticked, by name; `isAgain` keeps what is filled in.
 */
export function confirmed(title, text, word, { fields = [], chosen = {}, isPasswordWanted = false, isAgain = false } = {}) {
  if (dialog.open) return Promise.resolve(null);
  [$("#ask-title").textContent, $("#ask-text").textContent, yes.textContent, fault.textContent] = [title, text, word, ""];
  for (const part of $$("[data-asked]", form)) part.hidden = !fields.includes(part.id);
  $("#ask-password").hidden = !(typed.required = isPasswordWanted);
  if (!isAgain) fill(chosen);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((done) => {
    dialog.onclose = () => {
      typed.value = "";
      done(dialog.returnValue === "yes" ? new FormData(form) : null);
    };
  });
}

/** Confirm what reaches far, with the password where the node wants it, and do it; returns the node's answer, or null. */
export async function entrusted(title, text, word, act, asked = {}) {
  for (let isAgain = false; ; isAgain = true) {
    const given = await confirmed(title, text, word, { ...asked, isAgain, isPasswordWanted: await isPasswordWanted() });
    const answer = given && await act(given);
    if (answer?.body?.type !== WANTED) return answer; // else the showing ran out in between
  }
}

function fill(chosen) {
  form.reset();
  for (const box of $$("[type=checkbox]", form)) if (box.name in chosen) box.checked = chosen[box.name].includes(box.value);
}

async function isPasswordWanted() {
  const answer = await ask("GET", PASSWORD);
  return answer.ok && answer.body.is_wanted;
}

form.addEventListener("submit", async (event) => {
  if (!typed.required || event.submitter !== yes) return;
  event.preventDefault();
  const answer = await during(yes, "checking …", () => ask("POST", PASSWORD, { password: typed.value }));
  if (answer.ok) return dialog.close("yes");
  fault.textContent = why(answer);
  typed.select();
});

// Enter in a field says yes; without this the browser presses the first button, which is Cancel.
dialog.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !event.target.matches("input:not([type=checkbox])")) return;
  event.preventDefault();
  yes.click();
});

let granted = null;
addEventListener("click", async (event) => {
  const link = event.target.closest?.("a[download][href^='/api/v1/exports/']");
  if (!link) return;
  if (link === granted) { granted = null; return; } // our own click, below
  event.preventDefault();
  if (await isPasswordWanted() && !await confirmed("Export from this node?", "The export is recorded with your name.", "Export", { isPasswordWanted: true })) return;
  granted = link;
  link.click();
});
