// What happens at the node, as it happens: server-sent events, and a question every few seconds where they do not come.

const HEARTBEAT_MS = 15000, EVERY_MS = 5000;

/**
 * Listen until the page goes. `changed(study)` hears of one study; `poll()` asks for whatever the page shows;
 * `contact(at, isThere)` hears when the node was last heard, and whether it is still there.
 */
export function listen({ changed, poll, contact }) {
  let heardAt = new Date(), isThere = true, opened = false;
  const hear = () => { heardAt = new Date(); isThere = true; contact(heardAt, true); };
  const lose = () => { isThere = false; contact(heardAt, false); };
  const ask = async () => {
    const answer = await fetch("/health", { signal: AbortSignal.timeout(EVERY_MS), headers: { "X-Background": "1" } }).catch(() => null);
    if (!answer?.ok) return lose();
    hear();
    await poll();
  };
  let source = null;
  const open = () => {
    source = new EventSource("/api/v1/events");
    source.addEventListener("open", () => { opened = true; hear(); poll(); });
    source.addEventListener("error", () => { opened = false; });
    for (const name of ["study", "review", "delivery"]) source.addEventListener(name, (event) => { hear(); changed(JSON.parse(event.data).study_id); });
    source.addEventListener("heartbeat", hear);
    source.addEventListener("reset", () => { hear(); poll(); });
  };
  const close = () => { source?.close(); source = null; opened = false; }; // a browser has few connections: none for a page that nobody sees
  contact(heardAt, true);
  setInterval(() => {
    const isSilent = Date.now() - heardAt > HEARTBEAT_MS;
    if (!document.hidden && (!opened || isSilent || !isThere)) ask();
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
