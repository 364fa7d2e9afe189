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
  const rank = ranks(values);
  const count = chosen ? chosen.length : values.length;
  const keys = new Float64Array(count);
  const missing = [];
  let used = 0;
  for (let i = 0; i < count; i += 1) {
    const place = chosen ? chosen[i] : i;
    if (Number.isNaN(values[place])) missing.push(place);
    else keys[used++] = (descending ? 0xffffffff - rank[place] : rank[place]) * PLACES + place;
  }
  const sorted = keys.subarray(0, used).sort();
  const order = new Uint32Array(count);
  for (let i = 0; i < used; i += 1) order[i] = sorted[i] % PLACES;
  order.set(missing, used);
  return order;
};

// The Pareto front, from the cheapest to the best: of those of one cost the lowest, if it is lower than
// all that are cheaper. `sign` is −1 where more is better, `usable` says which may be on it.
export const paretoFront = (costs, values, sign, usable) => {
  const front = [];
  let best = Infinity;
  const order = sortedPlaces(costs);
  for (let i = 0; i < order.length; ) {
    const cost = costs[order[i]];
    let lowest = Infinity;
    let place = -1;
    for (; i < order.length && costs[order[i]] === cost; i += 1) {
      const value = sign * values[order[i]];
      if (value < lowest && (!usable || usable[order[i]])) [lowest, place] = [value, order[i]];
    }
    if (Number.isNaN(cost)) break;
    if (lowest < best) {
      best = lowest;
      front.push(place);
    }
  }
  return front;
};
