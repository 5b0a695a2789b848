// Ten seconds to take an answer back: a withdrawing review, which also drops what was about to leave the node. The offer
// survives a change of page; the tab remembers our ids and, where nobody logs in, the reader's name.

import { ask, toast } from "./shell.js";

const SECONDS = 10;

/** Offer to take a review back: {review, study, tag, reviewer}, the last where the review named it; `words` name the patient and are not kept. */
export function offer({ words, ...given }) {
  const kept = { ...given, until: Date.now() + 1000 * SECONDS };
  sessionStorage.undo = JSON.stringify(kept);
  show(kept, words);
}

/** Offer again what an earlier page offered. */
export function resume() {
  const kept = JSON.parse(sessionStorage.undo ?? "null");
  if (kept && kept.until > Date.now()) show(kept, "Your answer is saved.");
}

function show(kept, words) {
  toast(words, { undo: () => withdraw(kept), seconds: (kept.until - Date.now()) / 1000 });
}

async function withdraw({ review, study, tag, reviewer }) {
  delete sessionStorage.undo;
  const headers = tag ? { "If-Match": tag } : {};
  const answer = await ask("POST", "/api/v1/reviews", { study_id: study, verdict: "withdraw", predecessor_id: review, ...(reviewer && { reviewer }) }, headers);
  if (answer.ok) dispatchEvent(new CustomEvent("taken-back", { detail: study }));
  else if (answer.status === 412) toast("Not taken back: somebody has answered this study since. Open it to say what holds.");
  else toast(`Not taken back. ${answer.body?.detail ?? ""}`);
}
