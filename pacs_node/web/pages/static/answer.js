// The reader's answer: saved at once and guarded by what was on the screen. Never for a radiograph that was not seen,
// never over another reader's answer.

import { $, $$, ask, fetchPage, toast } from "./shell.js";
import { dropRegion, isSeen, regionOfAnswer } from "./film.js";
import { offer } from "./undo.js";

const main = () => $("#main"), named = () => main().dataset.named;
let isSaving = false, refused = null;

/** Return the button of a key, where the study takes that answer. */
export const buttonOf = (key) => $$(`[data-say="${key}"]:not(:disabled)`).find((button) => button.offsetParent);

function reviewOf(button) {
  const [verdict, said, blind] = button.value.split(":"), name = $("[name=reviewer]"), region = regionOfAnswer();
  const finding = verdict === "disagree" ? $("#finding")?.value || said : said;
  if (name) localStorage.reader = name.value;
  return {
    study_id: main().dataset.study, verdict, comment: $("#comment")?.value ?? "",
    ...(finding && { corrected_finding: finding }), ...(name && { reviewer: name.value }), ...(region && { region }), ...(blind && { is_blind: true }),
  };
}

/** Save the answer of a button; `next` shows the study to read then. */
export async function save(button, next) {
  if (isSaving || button.disabled) return;
  if (document.body.classList.contains("offline")) return toast("Not saved: the node does not answer.");
  if (!isSeen()) return toast(`Not saved: the radiograph of ${named()} was not on the screen yet.`);
  const name = $("[name=reviewer]");
  if (name && !name.reportValidity()) return;
  isSaving = true;
  await post(reviewOf(button), button.dataset.word, next).finally(() => { isSaving = false; });
}

async function post(review, word, next) {
  const words = `${word}, saved for ${named()}.`;
  const answer = await ask("POST", "/api/v1/reviews", review, { "If-Match": `"${main().dataset.tag}"` });
  if (answer.status === 412) return conflict(review, word, next);
  if (!answer.ok) return toast(`Not saved for ${named()}. ${answer.body?.detail ?? ""}`);
  dropRegion();
  offer({ review: answer.body.review_id, study: review.study_id, tag: answer.headers.get("etag"), words });
  await next();
}

/** Somebody was first: say who and what, and let the reader choose; ours is not saved. */
async function conflict(review, word, next) {
  const page = await fetchPage(location.href, { background: true }).catch(() => null);
  if (!page) return toast(`Not saved for ${named()}: another reader was first, and the node does not answer now.`);
  const theirs = $$("#standing li", page).map((line) => line.textContent.trim()).join(" ");
  main().dataset.tag = $("#main", page).dataset.tag;
  refused = { review, word, next };
  $("#conflict-words").textContent = `${theirs || "This study has a new report since you opened it."} Yours (${word}) is not saved.`;
  $("#conflict").hidden = false;
  $("#choices").hidden = true;
  $("#conflict .main").focus();
}

/** Do what the reader chose in a conflict. */
export async function settle(choice) {
  const { review, word, next } = refused;
  refused = null;
  $("#conflict").hidden = true;
  $("#choices").hidden = false;
  if (choice === "second") await post(review, `${word}, as a second reading`, next);
  else await next({ isSaved: false });
}

export const isInConflict = () => refused !== null;
