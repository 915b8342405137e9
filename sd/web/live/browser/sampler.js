// From noise to a latent: sd/schedule.py, sd/denoiser.py and sd/samplers.py in JavaScript.
//
// x holds the clean latent plus sigma times noise. A denoiser is a function (x, sigma) -> x0, a promise of the estimate
// of the clean latent. x and x0 are Float32Arrays; `table` is the noise level of each time t that the model was trained
// with, rising.

// The time of a noise level, linear in log(sigma) between two entries of the table.
export function timeOf(sigma, table) {
  const above = table.findIndex((one) => one >= sigma);
  if (above === 0) return 0;
  if (above < 0) return table.length - 1;
  const [low, high] = [Math.log(table[above - 1]), Math.log(table[above])];
  return above - 1 + (Math.log(sigma) - low) / (high - low);
}

// The noise levels of a run, as LDM has them: t = 1 + k * floor(1000 / steps), falling, and 0 at the end.
export function sigmaList(steps, table) {
  const stride = Math.floor(table.length / steps);
  const offset = Math.min(1, table.length - 1 - (steps - 1) * stride);
  const sigmas = Array.from({ length: steps }, (_, i) => table[stride * (steps - 1 - i) + offset]);
  return [...sigmas, 0];
}

// The first x of a run from noise.
export function startFrom(noise, sigmas) {
  const scale = Math.sqrt(1 + sigmas[0] ** 2);
  return noise.map((value) => value * scale);
}

// A denoiser with classifier-free guidance (Ho & Salimans 2022, eq. 6): x0 = uncond + scale * (cond - uncond).
// unet: (inputs, t) -> a promise of eps. It gets x twice, in unit variance, for the negative prompt and the prompt.
export function guided(unet, scale, table) {
  return async (x, sigma) => {
    const size = x.length;
    const inputs = new Float32Array(2 * size);
    const unit = Math.sqrt(1 + sigma ** 2);
    for (let i = 0; i < 2 * size; i++) inputs[i] = x[i % size] / unit;
    const eps = await unet(inputs, timeOf(sigma, table));
    return x.map((value, i) => {
      const uncond = value - sigma * eps[i];
      const cond = value - sigma * eps[size + i];
      return uncond + scale * (cond - uncond);
    });
  };
}

// DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): x0 is extrapolated along its change over the last step.
// Yields {x, x0} after each step.
export async function* dpmpp2m(denoise, x, sigmas) {
  let last = null; // x0 and the step's length in log(sigma)
  for (let step = 0; step + 1 < sigmas.length; step++) {
    const [sigma, to] = [sigmas[step], sigmas[step + 1]];
    const x0 = await denoise(x, sigma);
    let target = x0;
    if (to > 0) {
      const h = Math.log(sigma / to);
      if (last) target = x0.map((value, i) => value + (h / last.h / 2) * (value - last.x0[i]));
      last = { x0, h };
    }
    x = x.map((value, i) => target[i] + (to / sigma) * (value - target[i]));
    yield { x, x0 };
  }
}

// The affine decoder for previews: from 3 x 3 positions of the latent to a block of pixels; see
// sd/pipeline/tracing/linear_decoder.py. Returns {width, height, data}, as an ImageData has them.
export function preview(latent, [channels, height, width], { block, weights }) {
  const area = block * block;
  const data = new Uint8ClampedArray(4 * area * height * width);
  const inside = (value, size) => Math.min(Math.max(value, 0), size - 1);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const pixels = Float64Array.from(weights[9 * channels]); // the offset
      for (let tap = 0; tap < 9 * channels; tap++) {
        const row = inside(y + (Math.floor(tap / 3) % 3) - 1, height);
        const column = inside(x + (tap % 3) - 1, width);
        const value = latent[(Math.floor(tap / 9) * height + row) * width + column];
        weights[tap].forEach((weight, i) => (pixels[i] += value * weight));
      }
      for (let i = 0; i < area; i++) {
        const at = 4 * ((y * block + Math.floor(i / block)) * width * block + x * block + (i % block));
        for (let color = 0; color < 3; color++) data[at + color] = 127.5 * (pixels[color * area + i] + 1);
        data[at + 3] = 255;
      }
    }
  return { width: width * block, height: height * block, data };
}

// The VAE's image, planes of red, green and blue in [-1, 1], as pixels.
export function toPixels(planes, size) {
  const data = new Uint8ClampedArray(4 * size * size);
  for (let i = 0; i < size * size; i++) {
    for (let color = 0; color < 3; color++) data[4 * i + color] = 127.5 * (planes[color * size * size + i] + 1);
    data[4 * i + 3] = 255;
  }
  return { width: size, height: size, data };
}
