// The order of many numbers. Keys are numbers of 53 bits, 32 for the value and 21 for its place, which
// a typed array sorts by itself: a million in some 0.1 s, and equal values stay in order.

const PLACES = 2 ** 21;

// Numbers from 0 to 2^32 − 1 in the same order; float32 exactly, others in steps of their range.
const ranks = (values) => {
  const found = new Uint32Array(values.length);
  if (values instanceof Float32Array) {
    const raw = new Uint32Array(values.buffer, values.byteOffset, values.length);
    for (let i = 0; i < raw.length; i += 1) found[i] = raw[i] & 0x80000000 ? ~raw[i] : raw[i] | 0x80000000;
    return found;
  }
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const scale = high > low ? (2 ** 32 - 1) / (high - low) : 0;
  for (let i = 0; i < values.length; i += 1) found[i] = Math.round((values[i] - low) * scale);
  return found;
};

// The places of the values from low to high, or from high to low; NaN comes last. `chosen` are the
// places to sort, all if it is null.
export const sortedPlaces = (values, chosen = null, descending = false) => {
  const some = chosen ? values.constructor.from(chosen, (place) => values[place]) : values;
  const rank = ranks(some);
  const keys = new Float64Array(some.length);
  const missing = [];
  let used = 0;
  for (let i = 0; i < some.length; i += 1) {
    if (Number.isNaN(some[i])) missing.push(i);
    else keys[used++] = (descending ? 0xffffffff - rank[i] : rank[i]) * PLACES + i;
  }
  const sorted = keys.subarray(0, used).sort();
  const order = new Uint32Array(some.length);
  for (let i = 0; i < used; i += 1) order[i] = sorted[i] % PLACES;
  order.set(missing, used);
  return chosen ? order.map((i) => chosen[i]) : order;
};

const BINS = 4096; // of costs

// The places that may be on the front: better than all in the bins of costs below their own. Of a
// million these are few, and only they are sorted.
const candidates = (costs, values, sign, usable) => {
  let [low, high] = [Infinity, -Infinity];
  for (const cost of costs) {
    if (cost < low) low = cost;
    if (cost > high) high = cost;
  }
  const scale = high > low ? (BINS - 1) / (high - low) : 0;
  const best = new Float64Array(BINS + 1).fill(Infinity);
  for (let i = 0; i < costs.length; i += 1) {
    const value = sign * values[i];
    const bin = Math.floor((costs[i] - low) * scale) + 1;
    if (value < best[bin] && (!usable || usable[i])) best[bin] = value;
  }
  for (let bin = 1; bin <= BINS; bin += 1) if (best[bin - 1] < best[bin]) best[bin] = best[bin - 1];
  const found = [];
  for (let i = 0; i < costs.length; i += 1) {
    const bin = Math.floor((costs[i] - low) * scale);
    if (sign * values[i] < best[bin] && (!usable || usable[i])) found.push(i);
  }
  return Uint32Array.from(found);
};

// The Pareto front, from the cheapest to the best: of those of one cost the lowest, if it is lower than
// all that are cheaper. `sign` is −1 where more is better, `usable` says which may be on it.
export const paretoFront = (costs, values, sign, usable) => {
  const front = [];
  let best = Infinity;
  const order = sortedPlaces(costs, candidates(costs, values, sign, usable));
  for (let i = 0; i < order.length; ) {
    const cost = costs[order[i]];
    let lowest = Infinity;
    let place = -1;
    for (; i < order.length && costs[order[i]] === cost; i += 1) {
      const value = sign * values[order[i]];
      if (value < lowest) [lowest, place] = [value, order[i]];
    }
    if (lowest < best) {
      best = lowest;
      front.push(place);
    }
  }
  return front;
};
