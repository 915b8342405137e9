// The form of the page /live. worker.js does the work; this shows what it sends.

const SLOW = 15; // seconds of loading after which the page says what it waits for
const find = (id) => document.getElementById(id);
const form = document.querySelector("form");
const generate = form.querySelector("[type=submit]");
const [stop, status, alert, progress, image, film] = ["stop", "status", "alert", "progress", "image", "film"].map(find);

let worker = null;
let run = null; // the values of the run in progress
let slow = 0; // a timer

const show = (canvas, { width, height, data }) => {
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
};
const megabytes = (bytes) => (bytes / 1e6).toFixed(0);
const say = (text, share) => {
  status.textContent = text;
  if (share === undefined) progress.removeAttribute("value");
  else progress.value = share;
};

function finish() {
  run = null;
  generate.disabled = false;
  stop.disabled = true;
}

function fail(sentence) {
  finish();
  say("Nothing was generated.", 0);
  alert.textContent = sentence;
  alert.hidden = false;
}

const handlers = {
  loading({ done, all }) {
    clearTimeout(slow);
    if (all && done < all) return say(`Loading the model: ${megabytes(done)} of ${megabytes(all)} MB.`, done / all);
    say(all ? "Starting the model." : "The server prepares the model.");
    const waits = all ? "The browser is still preparing the networks." : "The server is still exporting the model, once.";
    slow = setTimeout(() => say(waits), 1000 * SLOW);
  },
  step({ step, steps, cut, image: pixels }) {
    clearTimeout(slow);
    if (step === 1) warn(cut);
    say(step < steps ? `Step ${step} of ${steps}.` : "Decoding the image.", step / (steps + 1));
    show(image, pixels);
    image.setAttribute("aria-label", `Estimate after step ${step} of ${steps}: ${run.prompt}`);
    const small = document.createElement("canvas");
    small.setAttribute("role", "img");
    small.setAttribute("aria-label", `Estimate after step ${step}`);
    show(small, pixels);
    const item = document.createElement("li");
    item.append(small, String(step));
    film.append(item);
    find("film-title").hidden = false;
  },
  done({ image: pixels, seconds }) {
    show(image, pixels);
    image.setAttribute("aria-label", run.prompt);
    say(`Done in ${seconds.toFixed(1)} seconds.`, 1);
    const { prompt, seed, steps, scale } = run;
    find("about").textContent = `“${prompt}”, seed ${seed}, ${steps} steps of DPM++ 2M, guidance scale ${scale}`;
    find("save").href = image.toDataURL("image/png");
    for (const id of ["about", "results"]) find(id).hidden = false;
    finish();
  },
  stopped({ step, steps }) {
    say(`Stopped after step ${step} of ${steps}.`, step / (steps + 1));
    finish();
  },
  failed({ sentence }) {
    clearTimeout(slow);
    fail(sentence);
  },
};

function warn(cut) {
  const texts = ["negative prompt", "prompt"].map((name, i) => cut[i] && `The ${name} is too long: its last ${cut[i]} tokens are left out.`);
  alert.textContent = texts.filter(Boolean).join(" ");
  alert.hidden = !alert.textContent;
}

function start() {
  worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => handlers[data.type](data);
  worker.onerror = () => {
    worker = null; // the next press starts another
    fail("The browser could not run the model: it needs WebAssembly, and a server that answers.");
  };
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (run) return;
  const { prompt, negative, steps, scale, seed } = form.elements;
  run = {
    type: "generate",
    prompt: prompt.value,
    negative: negative.value,
    steps: steps.valueAsNumber,
    scale: scale.valueAsNumber,
    seed: seed.valueAsNumber,
  };
  [generate.disabled, stop.disabled, alert.hidden] = [true, false, true];
  for (const id of ["about", "results"]) find(id).hidden = true;
  film.replaceChildren();
  if (!worker) start();
  say("Encoding the prompt.");
  worker.postMessage(run);
});

function halt() {
  if (!run) return;
  say("Stopping after this step.");
  stop.disabled = true;
  worker.postMessage({ type: "stop" });
}

stop.addEventListener("click", halt);
document.addEventListener("keydown", (event) => event.key === "Escape" && halt());
