// The noise of a seed, number for number as torch.randn(..., generator=torch.Generator().manual_seed(seed)) on a CPU,
// but for the last digit of log, sin and cos. So a seed gives the image here that it gives in Python.

// The Mersenne Twister (Matsumoto & Nishimura 1998): a function that returns the next 32 random bits.
export function mersenneTwister(seed) {
  const state = new Uint32Array(624);
  state[0] = seed;
  for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
  let at = 624;

  const renew = () => {
    for (let i = 0; i < 624; i++) {
      const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
      state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    at = 0;
  };

  return () => {
    if (at === 624) renew();
    let y = state[at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  };
}

// Standard normal numbers by Box and Muller's transform, 16 at a time: eight radii and eight angles.
export function randn(count, seed) {
  if (count < 16) throw new Error("torch makes fewer than 16 numbers in another way.");
  const next = mersenneTwister(seed);
  const uniform = () => (next() & 0xffffff) / 0x1000000; // 24 bits, in [0, 1)
  const numbers = Float32Array.from({ length: count }, uniform);
  const transform = (start) => {
    for (let i = start; i < start + 8; i++) {
      const radius = Math.sqrt(-2 * Math.log(1 - numbers[i]));
      const angle = 2 * Math.PI * numbers[i + 8];
      numbers[i] = radius * Math.cos(angle);
      numbers[i + 8] = radius * Math.sin(angle);
    }
  };
  for (let start = 0; start + 16 <= count; start += 16) transform(start);
  if (count % 16) {
    // What is left over: the last 16 are made anew, from new uniform numbers.
    for (let i = count - 16; i < count; i++) numbers[i] = uniform();
    transform(count - 16);
  }
  return numbers;
}
