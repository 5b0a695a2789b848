// What happens at the node, as it happens: server-sent events, and a question every few seconds where they do not come.

import { BACKGROUND } from "./shell.js";

const HEARTBEAT_MS = 15000, EVERY_MS = 5000;

/**
 * Listen until the page goes. `changed(study)` hears of one study; `poll()` asks for whatever the page shows;
 * `contact(at, isThere, isLive)` hears when the node was last heard, whether it is still there, and whether it tells by itself.
 */
export function listen({ changed, poll, contact }) {
  let heardAt = new Date(), isThere = true, opened = false;
  const hear = () => { heardAt = new Date(); isThere = true; contact(heardAt, true, opened); };
  const lose = () => { isThere = false; contact(heardAt, false, false); };
  const ask = async () => {
    const answer = await fetch("/health", { signal: AbortSignal.timeout(EVERY_MS), headers: BACKGROUND }).catch(() => null);
    if (!answer?.ok) return lose();
    hear();
    await poll();
  };
  let source = null;
  const open = () => {
    const mine = source = new EventSource("/api/v1/events");
    source.addEventListener("open", () => { opened = true; hear(); poll(); });
    source.addEventListener("error", () => { if (source === mine) opened = false; });
    for (const name of ["study", "review", "delivery"]) source.addEventListener(name, (event) => { hear(); changed(JSON.parse(event.data).study_id); });
    source.addEventListener("heartbeat", hear);
    source.addEventListener("reset", () => { hear(); poll(); });
  };
  const close = () => { source?.close(); source = null; opened = false; }; // a browser has few connections: none for a page that nobody sees
  contact(heardAt, true, false);
  setInterval(() => {
    if (document.hidden) return;
    if (source?.readyState === EventSource.CLOSED) open(); // after an answer like 503 a browser does not try again
    const isSilent = Date.now() - heardAt > HEARTBEAT_MS;
    if (!opened || isSilent || !isThere) ask();
  }, EVERY_MS);
  document.querySelector("#offline button")?.addEventListener("click", ask);
  addEventListener("visibilitychange", () => {
    if (document.hidden) return close();
    if (!source) open();
    ask();
  });
  addEventListener("pagehide", close);
  if (!document.hidden) open();
}
