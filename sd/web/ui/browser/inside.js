// The viewer of traces, as the element <sd-inside>; sd/pipeline/tracing/document.py says what a trace holds.
// data-traces: addresses of traces, side by side. data-before: one more, on request. data-inline: the id of a <script>
// with {traces, samplers} instead. Everything is drawn here from the latents; nothing else is fetched.

(() => {
  if (customElements.get("sd-inside")) return;

  const ROWS = ["x", "guided", "cond", "uncond"];
  const NAMES = {
    x: "x_t: what the sampler holds",
    guided: "x0, guided",
    cond: "x0, conditional: with the prompt",
    uncond: "x0, unconditional: without it",
    x0: "x0: the guided estimate",
  };
  const MOST_SCALE = 12;
  const WIDTH = 360; // of a plane
  const HEIGHT = 240;
  const DASHES = ["", "6 3", "2 3", "8 3 2 3", "1 4", "12 4"];
  const HEAT = [234, 88, 12];

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const svg = (tag, attributes, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  };
  const figure = (canvas, ...caption) => make("figure", {}, canvas, make("figcaption", {}, ...caption));
  const picture = (label) => make("canvas", { role: "img", "aria-label": label });
  const section = (title, hint, ...children) =>
    make("section", { class: "part" }, make("h4", {}, title), make("p", { class: "hint" }, hint), ...children);
  const percent = (share) => `${(100 * share).toFixed(1)} %`;

  const readArray = ({ shape, scale, data }) => {
    const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
    return { shape, values: Float32Array.from(new Int16Array(bytes.buffer), (value) => value * scale) };
  };
  const product = (numbers) => numbers.reduce((one, other) => one * other, 1);
  const part = ({ shape, values }, ...index) => {
    const size = product(shape.slice(index.length));
    const start = index.reduce((sum, one, i) => sum * shape[i] + one, 0) * size;
    return values.subarray(start, start + size);
  };

  class Trace {
    constructor(content) {
      Object.assign(this, content);
      this.latents = readArray(content.latents);
      this.weights = readArray(content.decoder.weights).values;
      this.attention = content.words && readArray(content.words.attention);
      this.changes = content.words && content.words.changes && readArray(content.words.changes);
      [this.height, this.width] = this.latents.shape.slice(3);
    }

    latent(step, row) {
      return part(this.latents, step, ROWS.indexOf(row));
    }

    // uncond + scale * (cond - uncond)
    guided(step, scale) {
      const cond = this.latent(step, "cond");
      return this.latent(step, "uncond").map((value, i) => value + scale * (cond[i] - value));
    }

    // The affine decoder of sd/pipeline/tracing/linear_decoder.py: from 3 x 3 positions to a block of pixels.
    decode(latent) {
      const { height, width } = this;
      const own = this.decoder.block;
      const area = height * width;
      const mean = latent.reduce((sum, value) => sum + value, 0) / latent.length;
      const spread = Math.sqrt(latent.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (latent.length - 1));
      const factor = Math.min(1, this.decoder.spread / (spread || 1));
      const outputs = 3 * own * own;
      const image = new ImageData(width * own, height * own);
      const pixels = new Float32Array(outputs);
      for (let y = 0; y < height; y++)
        for (let x = 0; x < width; x++) {
          pixels.set(this.weights.subarray(36 * outputs));
          for (let tap = 0; tap < 36; tap++) {
            const row = Math.min(Math.max(y + (Math.floor(tap / 3) % 3) - 1, 0), height - 1);
            const column = Math.min(Math.max(x + (tap % 3) - 1, 0), width - 1);
            const value = factor * latent[Math.floor(tap / 9) * area + row * width + column];
            const from = tap * outputs;
            for (let i = 0; i < outputs; i++) pixels[i] += value * this.weights[from + i];
          }
          for (let i = 0; i < own * own; i++) {
            const at = 4 * ((y * own + Math.floor(i / own)) * width * own + x * own + (i % own));
            for (let color = 0; color < 3; color++)
              image.data[at + color] = 127.5 * (pixels[color * own * own + i] + 1);
            image.data[at + 3] = 255;
          }
        }
      return image;
    }
  }

  const put = (canvas, image) => {
    [canvas.width, canvas.height] = [image.width, image.height];
    canvas.getContext("2d").putImageData(image, 0, 0);
  };

  // One channel in gray, from -largest (black) to largest (white).
  const grays = (values, width, height, largest) => {
    const image = new ImageData(width, height);
    values.forEach((value, i) => {
      image.data.fill(127.5 * (value / largest + 1), 4 * i, 4 * i + 3);
      image.data[4 * i + 3] = 255;
    });
    return image;
  };

  // A map in orange, from `smallest` (clear) to its largest value (opaque), over the image without its colors.
  const overlay = (canvas, image, values, width, height, smallest) => {
    const range = Math.max(...values) - smallest || 1;
    const base = new ImageData(image.width, image.height);
    for (let i = 0; i < base.data.length; i += 4) {
      const gray = (image.data[i] + image.data[i + 1] + image.data[i + 2]) / 3;
      base.data.fill(0.75 * gray + 40, i, i + 3);
      base.data[i + 3] = 255;
    }
    put(canvas, base);
    const heat = new ImageData(width, height);
    values.forEach((value, i) => {
      heat.data.set([...HEAT, (235 * (value - smallest)) / range], 4 * i);
    });
    const small = make("canvas");
    put(small, heat);
    canvas.getContext("2d").drawImage(small, 0, 0, canvas.width, canvas.height);
  };

  // Returns (point) -> [x, y] within a plane of WIDTH by HEIGHT that holds these points.
  const fit = (points) => {
    const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
    const [left, top] = [Math.min(...xs), Math.min(...ys)];
    const scale = Math.min(
      (WIDTH - 40) / (Math.max(...xs) - left || 1),
      (HEIGHT - 40) / (Math.max(...ys) - top || 1),
    );
    const [offsetX, offsetY] = [
      (WIDTH - scale * (Math.max(...xs) - left)) / 2,
      (HEIGHT - scale * (Math.max(...ys) - top)) / 2,
    ];
    return ([x, y]) => [offsetX + scale * (x - left), offsetY + scale * (y - top)];
  };
  const line = (points, name, index = 0) =>
    svg("polyline", {
      class: `path ${name}`,
      points: points.map((point) => point.map((value) => value.toFixed(1)).join(",")).join(" "),
      "stroke-dasharray": DASHES[index % DASHES.length],
    });
  const dot = ([cx, cy], name) => svg("circle", { cx, cy, r: 5, class: `dot ${name}` });
  const arrow = ([x1, y1], [x2, y2], name) => {
    const length = Math.hypot(x2 - x1, y2 - y1);
    const group = svg("g", { class: `arrow ${name}` });
    group.append(svg("line", { x1, y1, x2, y2 }));
    if (length < 8) return group; // too short for a head
    const [dx, dy] = [(x2 - x1) / length, (y2 - y1) / length];
    const head = [[8, 4], [0, 0], [8, -4]].map(([back, aside]) => [
      x2 - back * dx + aside * dy,
      y2 - back * dy - aside * dx,
    ]);
    group.append(svg("polyline", { points: head.map((point) => point.join(",")).join(" ") }));
    return group;
  };
  const drawing = () => svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "plane", role: "img" });
  const legend = (names) =>
    make(
      "p",
      { class: "legend" },
      ...names.map(([name, text]) => make("span", { class: `key ${name}` }, make("i", { "aria-hidden": "true" }), text)),
    );

  // Each part is a function of a trace: {element, show(step)}.

  const estimates = (trace, choose) => {
    const tiles = ROWS.map((row) => [row, picture(NAMES[row])]);
    const film = make("canvas", { class: "film", "aria-hidden": "true" });
    const count = trace.steps.length;
    const side = [trace.width, trace.height].map((length) => length * trace.decoder.block);
    [film.width, film.height] = [count * side[0], ROWS.length * side[1]];
    const brush = film.getContext("2d");
    ROWS.forEach((row, y) =>
      trace.steps.forEach((_, x) => brush.putImageData(trace.decode(trace.latent(x, row)), x * side[0], y * side[1])),
    );
    film.addEventListener("click", (event) => {
      choose(Math.min(Math.floor((count * event.offsetX) / film.clientWidth), count - 1));
    });
    const mark = make("div", { class: "mark" });
    mark.style.width = `${100 / count}%`;
    const strip = make("div", { class: "strip" }, film, mark);
    const element = section(
      "Four rows, step by step",
      "The sampler moves x_t towards the guided estimate of the clean latent, x0. The U-Net makes two estimates, with your prompt and with the negative or empty one, and guidance joins them.",
      make("div", { class: "tiles" }, ...tiles.map(([row, canvas]) => figure(canvas, NAMES[row]))),
      strip,
    );
    const show = (step) => {
      for (const [row, canvas] of tiles) {
        put(canvas, trace.decode(trace.latent(step, row)));
        const missing = row === "uncond" && !trace.steps[step].guided;
        canvas.classList.toggle("missing", missing);
        canvas.nextSibling.textContent = missing ? "x0, unconditional: not computed at this step" : NAMES[row];
        canvas.ariaLabel = `${canvas.nextSibling.textContent}, step ${trace.steps[step].step}`;
      }
      mark.style.left = `${(100 * step) / count}%`;
    };
    return { element, show };
  };

  const words = (trace) => {
    const { entries, shares, changed, changed_steps: changedSteps } = trace.words;
    let chosen = changed[changed.length > 1 ? 1 : 0] ?? 0;
    let at = 0;
    const [seen, effect] = [picture("Attention"), picture("Change")];
    const [seenText, effectText] = [make("span"), make("span")];
    const buttons = entries.map((entry, index) => {
      const button = make("button", { type: "button", class: "word" }, entry, make("small"));
      const choose = () => {
        chosen = index;
        show(at);
      };
      for (const event of ["mouseenter", "focus", "click"]) button.addEventListener(event, choose);
      if (!changed.includes(index)) button.classList.add("token");
      return button;
    });
    const element = section(
      "Which word does what",
      "The first map shows where the word is attended to, the second what it changes, |x0 − x0 without the word|. They differ: a position can read a word without needing it, and the start token and the padding hold a large share.",
      make("div", { class: "words", role: "group", "aria-label": "Words" }, ...buttons),
      make("div", { class: "tiles pair" }, figure(seen, seenText), figure(effect, effectText)),
    );
    const showChange = (image) => {
      const place = changed.indexOf(chosen);
      const known = changedSteps.filter((step) => step <= at).length - 1;
      effect.parentElement.classList.toggle("empty", place < 0 || !trace.changes);
      if (place < 0 || !trace.changes) {
        effectText.textContent = trace.changes
          ? "Only words can be taken out of a prompt."
          : "What words change was not recorded.";
        return;
      }
      const index = Math.max(known, 0);
      const values = part(trace.changes, index, place);
      const [height, width] = trace.changes.shape.slice(2);
      overlay(effect, image, values, width, height, 0);
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      const step = trace.steps[changedSteps[index]].step;
      effectText.textContent = `Without “${entries[chosen]}” x0 changes by ${mean.toFixed(3)} on average (at step ${step}).`;
      effect.ariaLabel = effectText.textContent;
    };
    const show = (step) => {
      at = step;
      buttons.forEach((button, index) => {
        button.setAttribute("aria-pressed", String(index === chosen));
        button.lastChild.textContent = percent(shares[step][index]);
      });
      const image = trace.decode(trace.latent(step, "cond"));
      const values = part(trace.attention, step, chosen);
      const [height, width] = trace.attention.shape.slice(2);
      const [low, high] = [Math.min(...values), Math.max(...values)];
      overlay(seen, image, values, width, height, low);
      seenText.textContent = `“${entries[chosen]}” has ${percent(shares[step][chosen])} of the attention: ${percent(low)} (clear) to ${percent(high)} (orange) at a position.`;
      seen.ariaLabel = seenText.textContent;
      showChange(image);
    };
    return { element, show };
  };

  const guidance = (trace) => {
    const { cond, uncond } = trace.estimates;
    const input = make("input", { type: "range", min: 0, max: MOST_SCALE, step: 0.1, value: trace.scale });
    const value = make("output");
    const canvas = picture("x0 at this scale");
    const text = make("span");
    const plane = drawing();
    let at = 0;
    const element = section(
      "Guidance",
      "x0 = uncond + s (cond − uncond): s = 0 ignores the prompt, s = 1 is the plain conditional estimate, and more goes past it. The slider changes this step's estimate alone, not the run.",
      make("label", { class: "slider" }, "Guidance scale s", input, value),
      make("div", { class: "tiles pair" }, figure(canvas, text), plane),
      legend([["uncond", "unconditional, by step"], ["cond", "conditional, by step"], ["guided", "the guided estimate"]]),
    );
    const show = (step) => {
      at = step;
      const scale = Number(input.value);
      const along = [0, 1].map((i) => uncond[step][i] + scale * (cond[step][i] - uncond[step][i]));
      const place = fit([...cond, ...uncond, along]);
      const [from, to, end] = [uncond[step], cond[step], along].map(place);
      plane.replaceChildren(
        line(uncond.map(place), "uncond", 1),
        line(cond.map(place), "cond"),
        arrow(from, end, "guided"),
        arrow(from, to, "cond"),
        dot(from, "uncond"),
        dot(to, "cond"),
        dot(end, "guided"),
      );
      const { distance, guided } = trace.steps[step];
      const sentence = guided
        ? `At s = ${scale.toFixed(1)}. The two estimates differ by ${distance.toFixed(3)} (root mean square).`
        : "There was no unconditional estimate at this step, so the scale changes nothing.";
      put(canvas, trace.decode(trace.guided(step, scale)));
      text.textContent = canvas.ariaLabel = sentence;
      plane.ariaLabel = `The estimates in a plane. ${sentence}`;
      value.textContent = scale.toFixed(1);
    };
    input.addEventListener("input", () => show(at));
    return { element, show };
  };

  const channels = (trace) => {
    const select = make("select", {}, ...ROWS.map((row) => make("option", { value: row }, NAMES[row])));
    select.value = "guided";
    const tiles = [0, 1, 2, 3].map((index) => picture(`Channel ${index + 1}`));
    let at = 0;
    const element = section(
      "The latent's four channels",
      `${trace.width} × ${trace.height} positions of four numbers are all that the U-Net and the sampler work with; gray is 0, white is positive and black is negative.`,
      make("label", { class: "slider" }, "Show", select),
      make("div", { class: "tiles channels" }, ...tiles.map((canvas) => figure(canvas, ""))),
    );
    const show = (step) => {
      at = step;
      const latent = trace.latent(step, select.value);
      const area = trace.width * trace.height;
      tiles.forEach((canvas, index) => {
        const values = latent.subarray(index * area, (index + 1) * area);
        const [low, high] = [Math.min(...values), Math.max(...values)];
        put(canvas, grays(values, trace.width, trace.height, Math.max(-low, high) || 1));
        canvas.nextSibling.textContent = `Channel ${index + 1}: ${low.toFixed(1)} to ${high.toFixed(1)}`;
        canvas.ariaLabel = canvas.nextSibling.textContent;
      });
    };
    select.addEventListener("change", () => show(at));
    return { element, show };
  };

  const paths = (trace) => {
    const plane = drawing();
    const place = fit(trace.paths.flatMap(({ points }) => points));
    const element = section(
      "The path",
      "All latents of this run in the plane in which they lie furthest apart: x_t from noise to the image, and the estimates that it follows.",
      plane,
      legend([["x", NAMES.x], ["guided", NAMES.x0]]),
    );
    const classes = { x: "x", x0: "guided" };
    const show = (step) => {
      plane.replaceChildren(
        ...trace.paths.map(({ name, points }, i) => line(points.map(place), classes[name], i)),
        ...trace.paths.map(({ name, points }) => dot(place(points[step]), classes[name])),
      );
      plane.ariaLabel = `The path of x_t and of x0 in a plane, at step ${trace.steps[step].step}`;
    };
    return { element, show };
  };

  const column = (trace, choose) => {
    const parts = [estimates(trace, choose)];
    if (trace.words) parts.push(words(trace));
    parts.push(guidance(trace), channels(trace), paths(trace));
    const error = trace.decoder.error.toFixed(2);
    const element = make(
      "section",
      { class: "trace", "aria-label": trace.title || "Empty prompt" },
      make(
        "header",
        {},
        make("img", { src: trace.image, alt: `The finished image of “${trace.title}”` }),
        make("div", {}, make("h3", {}, trace.title || "(empty prompt)"), make("p", { class: "place", role: "status" })),
      ),
      ...trace.notes.map((note) => make("p", { class: "note" }, note)),
      ...parts.map((one) => one.element),
      make(
        "details",
        {},
        make("summary", {}, "Settings, and how the previews are made"),
        make("pre", {}, trace.about),
        make(
          "p",
          { class: "hint" },
          `The previews are no images of the VAE, which would take longer than the run: they are an affine map of the latents, fitted to the finished image (root mean square error ${error}, of colors from −1 to 1).`,
        ),
      ),
    );
    const show = (step) => {
      const { step: number, sigma, t } = trace.steps[step];
      element.querySelector(".place").textContent = `Step ${number} of ${trace.total}: sigma ${sigma.toFixed(2)}, t ${Math.round(t)}`;
      for (const one of parts) one.show(step);
    };
    return { element, show };
  };

  // {title, hint, series: [{name, points}]}: the paths of several samplers.
  const samplers = ({ title, hint, series }) => {
    const plane = drawing();
    const place = fit(series.flatMap(({ points }) => points));
    const lines = series.map(({ name, points }, i) => line(points.map(place), `sampler s${i % 6}`, i));
    plane.append(...lines, dot(place(series[0].points[0]), "x"));
    plane.ariaLabel = `${title}: ${series.map(({ name }) => name).join(", ")}`;
    const buttons = series.map(({ name }, i) => {
      const button = make("button", { type: "button", class: `word key s${i % 6}`, "aria-pressed": "false" }, make("i", { "aria-hidden": "true" }), name);
      const light = (on) => {
        lines.forEach((one, other) => one.classList.toggle("faint", on && other !== i));
        buttons.forEach((one, other) => one.setAttribute("aria-pressed", String(on && other === i)));
      };
      for (const event of ["mouseenter", "focus"]) button.addEventListener(event, () => light(true));
      for (const event of ["mouseleave", "blur"]) button.addEventListener(event, () => light(false));
      return button;
    });
    return section(title, hint, plane, make("div", { class: "words", role: "group", "aria-label": "Samplers" }, ...buttons));
  };

  const controls = (count, choose) => {
    const slider = make("input", { type: "range", min: 0, max: count - 1, value: count - 1, "aria-label": "Step" });
    const play = make("button", { type: "button", "aria-pressed": "false" }, "▶ Play");
    let timer = null;
    const stop = () => {
      clearInterval(timer);
      timer = null;
      play.textContent = "▶ Play";
      play.setAttribute("aria-pressed", "false");
    };
    slider.addEventListener("input", () => {
      stop();
      choose(Number(slider.value));
    });
    play.addEventListener("click", () => {
      if (timer !== null) return stop();
      play.textContent = "⏸ Pause";
      play.setAttribute("aria-pressed", "true");
      let at = Number(slider.value) === count - 1 ? -1 : Number(slider.value);
      timer = setInterval(() => {
        if (!play.isConnected) return stop();
        at += 1;
        choose(at);
        if (at === count - 1) stop();
      }, 250);
    });
    return { element: make("div", { class: "steps" }, make("label", {}, "Step", slider), play), slider };
  };

  const view = (root, traces, more) => {
    const count = Math.max(...traces.map(({ steps }) => steps.length));
    const choose = (step) => {
      bar.slider.value = step;
      bar.slider.setAttribute("aria-valuetext", `${step + 1} of ${count}`);
      columns.forEach((one, i) => {
        const last = traces[i].steps.length - 1;
        one.show(count === last + 1 ? step : Math.round((step / Math.max(count - 1, 1)) * last));
      });
    };
    const bar = controls(count, choose);
    const columns = traces.map((trace) => column(trace, choose));
    const grid = make("div", { class: "traces", "data-count": traces.length }, ...columns.map((one) => one.element));
    root.replaceChildren(bar.element, grid, ...(more ? [samplers(more)] : []));
    choose(Math.floor((count - 1) / 4)); // where the two estimates differ most visibly
  };

  const load = async (address) => {
    const answer = await fetch(address, { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.status === 404 ? "its file was deleted" : `the server answers ${answer.status}`);
    return new Trace(await answer.json());
  };

  customElements.define(
    "sd-inside",
    class extends HTMLElement {
      connectedCallback() {
        if (this.firstChild) return;
        this.root = make("div", { class: "inside" });
        this.append(this.root);
        this.open().catch((error) => {
          this.root.replaceChildren(make("p", { role: "alert" }, `The trace cannot be shown: ${error.message}.`));
        });
      }

      async open() {
        const { inline, traces, before } = this.dataset;
        if (inline) {
          const content = JSON.parse(document.getElementById(inline).textContent);
          return view(this.root, content.traces.map((one) => new Trace(one)), content.samplers);
        }
        const own = await Promise.all(traces.split(" ").map(load));
        view(this.root, own);
        if (before) this.offer(own, before);
      }

      // A box to tick for one more trace beside this one.
      offer(own, before) {
        const box = make("input", { type: "checkbox" });
        this.prepend(make("label", { class: "compare" }, box, "Compare with the run before"));
        box.addEventListener("change", async () => {
          box.disabled = true;
          try {
            view(this.root, box.checked ? [...own, await load(before)] : own);
          } catch (error) {
            this.root.prepend(make("p", { role: "alert" }, `The run before cannot be shown: ${error.message}.`));
            box.checked = false;
          }
          box.disabled = false;
        });
      }
    },
  );
})();
