// What structures cost: the fixed part, what each gate adds that is on, and of what several gates share
// all if any of them is on. Structures are in canonical form.

import { formatSeconds, formatWhole } from './format.js';

export const COSTS = [
  { key: 'flops', label: 'FLOPs', name: 'FLOPs of one example', format: formatWhole },
  { key: 'params', label: 'Parameters', name: 'parameters', format: formatWhole },
  { key: 'seconds', label: 'Latency', name: 'measured seconds', format: formatSeconds },
];

export class Cost {
  constructor(kind, words, structures) {
    Object.assign(this, kind);
    this.fixed = words.fixed[kind.key] ?? 0;
    this.gates = words.gates.map((gate) => gate[kind.key] ?? 0);
    this.shared = kind.key === 'params' ? words.shared : [];
    this.full = this.of(new Uint8Array(this.gates.length).fill(1));
    this.rows = this.ofAll(structures);
  }

  of(bits) {
    let total = this.fixed;
    for (let i = 0; i < bits.length; i += 1) if (bits[i]) total += this.gates[i];
    for (const part of this.shared) if (part.gates.some((gate) => bits[gate])) total += part.params;
    return total;
  }

  // A table of the sums of each byte's gates, so that a row takes as many additions as it has bytes.
  ofAll({ count, width, packed, numGates }) {
    const sums = new Float64Array(width * 256);
    for (let at = 0; at < width * 256; at += 1) {
      for (let k = 0; k < 8; k += 1) {
        const gate = 8 * (at >> 8) + k;
        if ((at >> k) & 1 && gate < numGates) sums[at] += this.gates[gate];
      }
    }
    const masks = this.shared.map((part) => {
      const mask = new Uint8Array(width);
      for (const gate of part.gates) mask[gate >> 3] |= 1 << (gate & 7);
      return mask;
    });
    const found = new Float64Array(count);
    for (let row = 0; row < count; row += 1) {
      let total = this.fixed;
      const start = row * width;
      for (let i = 0; i < width; i += 1) total += sums[256 * i + packed[start + i]];
      for (let k = 0; k < masks.length; k += 1) {
        for (let i = 0; i < width; i += 1) {
          if (packed[start + i] & masks[k][i]) {
            total += this.shared[k].params;
            break;
          }
        }
      }
      found[row] = total;
    }
    return found;
  }
}

// The costs that are known of every gate.
export const knownCosts = (words, structures) =>
  COSTS.filter(({ key }) => words.gates.every((gate) => gate[key] !== null)).map(
    (kind) => new Cost(kind, words, structures),
  );
