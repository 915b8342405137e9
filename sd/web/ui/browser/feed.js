// The answers to what is pressed, all of which come on one feed. The server ends it when nothing is left to do. A press
// that reached the server just then got no answer: Gradio had not yet read the end, and waited on the ended feed. So
// the number of an event is kept back until the feed has named it, or Gradio has closed that feed and opens another.

(() => {
  const JOIN = "gradio_api/queue/join";
  const FEED = "gradio_api/queue/data";
  const ID = /"event_id":\s*"(\w+)"/g;
  const LATE = 1000; // milliseconds after an end that Gradio does not notice
  const plain = window.fetch;
  let open = null; // the feed that Gradio believes to be open: {named, waiting}, ids of events and functions by them

  const read = async (body, feed) => {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ; ) {
      const { done, value } = await reader.read();
      if (done) return;
      text += value;
      for (const [, id] of text.matchAll(ID)) {
        feed.named.add(id);
        feed.waiting.get(id)?.();
      }
      text = text.slice(text.lastIndexOf("\n") + 1);
    }
  };
  const close = (feed) => {
    if (open === feed) open = null;
    for (const resume of feed.waiting.values()) resume();
  };
  const follow = async (request) => {
    const feed = { named: new Set(), waiting: new Map() };
    open = feed;
    request.signal.addEventListener("abort", () => close(feed));
    const late = () => setTimeout(() => close(feed), LATE);
    try {
      const answer = await plain(request);
      const [body, copy] = answer.body.tee();
      read(copy, feed).then(late, late);
      return new Response(body, answer);
    } catch (error) {
      late();
      throw error;
    }
  };
  const join = async (...given) => {
    const answer = await plain(...given);
    const { event_id: id } = await answer.clone().json().catch(() => ({}));
    const feed = open;
    if (id && feed && !feed.named.has(id)) await new Promise((resume) => feed.waiting.set(id, resume));
    return answer;
  };

  window.fetch = (resource, options) => {
    const path = String(resource.url || resource).split("?")[0];
    if (path.endsWith(FEED)) return follow(new Request(resource, options));
    return path.endsWith(JOIN) ? join(resource, options) : plain(resource, options);
  };
})();
