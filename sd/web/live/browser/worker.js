// The networks and the sampler, in a worker, so that the page stays usable.
//
// Takes {type: "generate", prompt, negative, seed, steps, scale} and {type: "stop"}.
// Sends {type: "loading", name, done, all} in bytes, {type: "step", step, steps, image, cut}, {type: "done", image,
// seconds}, {type: "stopped"}, or {type: "failed", sentence}.

import { env, InferenceSession, Tensor } from "./ort.wasm.min.mjs";
import { randn } from "./noise.js";
import { dpmpp2m, guided, preview, sigmaList, startFrom, toPixels } from "./sampler.js";

// One thread: more of them wait for each other in busy loops, and stand still where other programs use the processor.
env.wasm.numThreads = 1;
env.wasm.wasmPaths = new URL("./", import.meta.url).href;

let loading = null; // a promise of the model, while it is fetched and after
let stopped = false;

self.onmessage = ({ data }) => {
  if (data.type === "stop") stopped = true;
  if (data.type !== "generate") return;
  stopped = false;
  generate(data).catch((error) => self.postMessage({ type: "failed", sentence: error.message || String(error) }));
};

async function generate({ prompt, negative, seed, steps, scale }) {
  loading ??= load();
  const model = await loading.catch((error) => {
    loading = null; // the next press tries again
    throw error;
  });
  const { about, sessions } = model;
  const { ids, cut } = await fetchJson("tokens", { prompt, negative_prompt: negative });
  const began = performance.now();
  const tokens = new Tensor("int64", BigInt64Array.from(ids.flat(), BigInt), [ids.length, about.length]);
  const { context } = await sessions.text_encoder.run({ ids: tokens });
  const unet = async (inputs, t) => {
    const given = {
      x: new Tensor("float32", inputs, [2, ...about.latent]),
      t: new Tensor("float32", [t, t], [2]),
      context,
    };
    return (await sessions.unet.run(given)).eps.data;
  };

  const sigmas = sigmaList(steps, about.sigmas);
  const noise = randn(about.latent.reduce((a, b) => a * b), seed);
  let [latent, step] = [noise, 0];
  for await (const { x, x0 } of dpmpp2m(guided(unet, scale, about.sigmas), startFrom(noise, sigmas), sigmas)) {
    latent = x;
    step += 1;
    self.postMessage({ type: "step", step, steps, cut, image: preview(x0, about.latent, about.preview) });
    await new Promise((resolve) => setTimeout(resolve)); // lets a "stop" in
    if (stopped) return self.postMessage({ type: "stopped", step, steps });
  }
  const unscaled = latent.map((value) => value / about.latent_scale);
  const decoded = await sessions.vae_decoder.run({ latent: new Tensor("float32", unscaled, [1, ...about.latent]) });
  const image = toPixels(decoded.image.data, about.image_size);
  self.postMessage({ type: "done", image, seconds: (performance.now() - began) / 1000 });
}

async function load() {
  self.postMessage({ type: "loading", done: 0, all: 0 });
  const about = await fetchJson("model.json");
  const all = Object.values(about.bytes).reduce((a, b) => a + b);
  const sessions = {};
  let done = 0;
  for (const name of Object.keys(about.bytes)) {
    const bytes = await fetchBytes(`model/${about.version}/${name}.onnx`, about.bytes[name], (count) =>
      self.postMessage({ type: "loading", done: done + count, all }),
    );
    done += bytes.length;
    sessions[name] = await InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  }
  return { about, sessions };
}

async function answerOf(address, options) {
  let answer;
  try {
    answer = await fetch(new URL(address, import.meta.url), options);
  } catch {
    throw new Error("The server does not answer: start it again, then press Generate.");
  }
  if (answer.ok) return answer;
  const { detail } = await answer.json().catch(() => ({ detail: `the server answers ${answer.status}.` }));
  throw new Error(detail[0].toUpperCase() + detail.slice(1));
}

async function fetchJson(address, body) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  return (await answerOf(address, body && options)).json();
}

async function fetchBytes(address, size, report) {
  const bytes = new Uint8Array(size);
  let count = 0;
  const reader = (await answerOf(address)).body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (count + value.length > size) break;
    bytes.set(value, count);
    report((count += value.length));
  }
  if (count !== size) throw new Error("A file of the model arrived incomplete: press Generate again.");
  return bytes;
}
