// The jobs of this page, followed until all have ended. props.kind: which kind. Each part is replaced only when it
// changes, so that a button stays in place while it is pressed.

const LIVE = 300; // milliseconds between two polls
const LOST = 1000;
const PATIENCE = 100; // polls after a press until its job exists: the upload of an image may take long
const find = (selector) => element.querySelector(selector);
const shown = {};
let page = null;
let ended = null; // the jobs known to have ended; null before the first answer
let polls = 0;
let wake = () => {};

const pause = (time) =>
  new Promise((resolve) => {
    wake = resolve;
    if (time) setTimeout(resolve, time);
  });

const show = (parts) => {
  for (const [name, html] of Object.entries(parts)) {
    if (shown[name] === html) continue;
    find(`[data-part=${name}]`).innerHTML = shown[name] = html;
  }
};

const poll = async () => {
  const current = sd.page(props.kind);
  const answer = await fetch(`page/jobs/${props.kind}?page=${current}`, { cache: "no-store" });
  if (!answer.ok) throw new Error(answer.statusText);
  const now = await answer.json();
  if (page !== null && current !== page) ended = [];
  page = current;
  show(now.parts);
  const fresh = ended === null ? [] : now.ended.filter((id) => !ended.includes(id));
  ended = now.ended;
  if (fresh.length) {
    dispatchEvent(new CustomEvent("sd-ended"));
    trigger("input", { jobs: fresh });
  }
  return now.live;
};

const follow = async () => {
  while (true) {
    let wait;
    try {
      const live = await poll();
      polls = live ? 0 : Math.max(polls - 1, 0);
      wait = live || polls ? LIVE : 0;
      find(".lost").hidden = true;
    } catch {
      find(".lost").hidden = false;
      wait = LOST;
    }
    await pause(wait);
  }
};

element.addEventListener("click", async (event) => {
  const thumbnail = event.target.closest("[data-image]");
  if (thumbnail) dispatchEvent(new CustomEvent("sd-view", { detail: thumbnail }));
  const attempt = event.target.closest("[data-prompt]");
  if (attempt) trigger("select", { job: attempt.dataset.prompt });
  const cancel = event.target.closest("[data-cancel]");
  if (!cancel) return;
  cancel.disabled = true;
  await Promise.allSettled(cancel.dataset.cancel.split(" ").map((id) => fetch(`jobs/${id}`, { method: "DELETE" })));
  wake();
});
addEventListener("sd-submitted", ({ detail }) => {
  if (detail !== props.kind) return;
  polls = PATIENCE;
  wake();
  sd.scrollTo(element);
});
addEventListener("sd-deleted", () => wake());
addEventListener("storage", () => wake());
document.addEventListener("visibilitychange", () => document.hidden || wake());
follow();
