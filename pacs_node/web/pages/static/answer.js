// The reader's answer: saved at once and guarded by what was on the screen. Never for a radiograph that was not seen,
// never over another reader's answer.

import { $, $$, ask, fetchPage, toast } from "./shell.js";
import { dropRegion, isSeen, regionOfAnswer } from "./film.js";
import { offer } from "./undo.js";

let saving = null, refused = null; // what is on its way, and what was refused because somebody was first

/** The study on the screen: who it is, and the tag of what is said of it there. */
function shown() {
  const { study, tag, named } = $("#main").dataset;
  return { study, tag, named };
}
const isShown = ({ study }) => $("#main").dataset.study === study;
/** Return the report that a tag is of: an answer to one is no answer to the next. */
export const reportOf = (tag) => tag.split(".")[0];

/** Return the button of a key, where the study takes that answer. */
export const buttonOf = (key) => $$(`[data-say="${key}"]:not(:disabled)`).find((button) => button.offsetParent);

const isOther = (button) => button.value.split(":")[1] === "normal" && $("#finding")?.value === "other"; // another finding is none of pneumonia
const wordOf = (button) => `${$("b", button).textContent}: ${$("small", button).textContent}`;

const isAway = () => document.body.classList.contains("offline");

/** Say on the buttons what they keep, with the finding that is chosen beside them, and that they keep nothing while the node is away. */
export function relabel() {
  for (const button of $$("[data-say]")) {
    $("small", button).textContent = isOther(button) ? "no pneumonia, another finding" : button.dataset.meaning;
    button.setAttribute("aria-disabled", String(isAway()));
  }
}

function reviewOf(button, study) {
  const [verdict, said, blind] = button.value.split(":"), name = $("[name=reviewer]"), region = regionOfAnswer();
  const finding = isOther(button) ? "other" : said;
  if (name) localStorage.reader = name.value;
  return {
    study_id: study, verdict, comment: $("#comment")?.value ?? "",
    ...(finding && { corrected_finding: finding }), ...(name && { reviewer: name.value }), ...(region && { region }), ...(blind && { is_blind: true }),
  };
}

/** Save the answer of a button; `next` shows the study to read then, `renew` what the node says of this one now. */
export async function save(button, { next, renew }) {
  const about = shown();
  if (button.disabled || (saving && isShown(saving))) return;
  if (saving) return toast(`Not saved: your answer for ${saving.named} is still on its way.`);
  if (isAway()) return toast("Not saved: the node does not answer.");
  if (!isSeen()) return toast(`Not saved: the radiograph of ${about.named} was not on the screen yet.`);
  const name = $("[name=reviewer]");
  if (name && !name.reportValidity()) return;
  await post({ about, review: reviewOf(button, about.study), word: wordOf(button), next, renew });
}

/** Send an answer. The reader may go on before the node replies: what follows is for the study that was answered. */
async function post(given) {
  const { about, review, word, next } = given;
  saving = about;
  const answer = await ask("POST", "/api/v1/reviews", review, { "If-Match": `"${about.tag}"` });
  saving = null;
  if (answer.status === 412) return conflict(given);
  if (!answer.ok) return toast(`Not saved for ${about.named}. ${answer.body?.detail ?? ""}`);
  offer({ review: answer.body.review_id, study: about.study, tag: answer.headers.get("etag"), reviewer: review.reviewer, words: `${word}, saved for ${about.named}.` });
  if (!isShown(about)) return;
  dropRegion();
  await next();
}

/** What was answered is no more: a new answer of the model is shown; of another reader's word the reader decides. Ours is not saved. */
async function conflict(given) {
  const { about, word, renew } = given;
  const page = await fetchPage(`/studies/${about.study}`, { background: true }).catch(() => null);
  if (!page) return toast(`Not saved for ${about.named}: somebody was first, and the node does not answer now.`);
  const { tag } = $("#main", page).dataset, theirs = $$("#standing li", page).map((line) => line.textContent.trim()).join(" ");
  const isNew = reportOf(tag) !== reportOf(about.tag);
  if (isNew && isShown(about)) await renew();
  if (isNew) return toast(`Not saved for ${about.named}: the model's answer is new.`);
  if (!isShown(about)) return toast(`Not saved for ${about.named}: ${theirs}`);
  refused = { ...given, about: { ...about, tag } };
  $("#conflict-words").textContent = `${theirs || "Another reader took an answer back since you opened this study."} Yours (${word}) is not saved.`;
  $("#conflict").hidden = false;
  $("#choices").hidden = true;
  $("#conflict .main").focus();
}

/** Do what the reader chose in a conflict. */
export async function settle(choice) {
  const { word, next } = refused;
  $("#conflict").hidden = true;
  $("#choices").hidden = false;
  if (choice === "second") await post({ ...refused, word: `${word}, as a second reading` });
  else await next({ isSaved: false });
}

/** Tell whether a conflict is on the screen; one that was left by going elsewhere is over. */
export const isInConflict = () => $("#conflict")?.hidden === false;
