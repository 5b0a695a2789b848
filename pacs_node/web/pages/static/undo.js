// Ten seconds to take an answer back: a withdrawing review, which also drops what was about to leave the node. The offer
// survives a change of page; the tab remembers our ids only.

import { ask, toast } from "./shell.js";

const SECONDS = 10;

/** Offer to take a review back; `words` name the patient and are not kept. */
export function offer({ review, study, tag, words }) {
  const until = Date.now() + 1000 * SECONDS;
  sessionStorage.undo = JSON.stringify({ review, study, tag, until });
  show({ review, study, tag, until }, words);
}

/** Offer again what an earlier page offered. */
export function resume() {
  const kept = JSON.parse(sessionStorage.undo ?? "null");
  if (kept && kept.until > Date.now()) show(kept, "Your answer is saved.");
}

function show(kept, words) {
  toast(words, { undo: () => withdraw(kept), seconds: (kept.until - Date.now()) / 1000 });
}

async function withdraw({ review, study, tag }) {
  delete sessionStorage.undo;
  const headers = tag ? { "If-Match": tag } : {};
  const reviewer = localStorage.reader ? { reviewer: localStorage.reader } : {};
  const answer = await ask("POST", "/api/v1/reviews", { study_id: study, verdict: "withdraw", predecessor_id: review, ...reviewer }, headers);
  if (answer.ok) dispatchEvent(new CustomEvent("taken-back", { detail: study }));
  else if (answer.status === 412) toast("Not taken back: somebody has answered this study since. Open it to say what holds.");
  else toast(`Not taken back. ${answer.body?.detail ?? ""}`);
}
