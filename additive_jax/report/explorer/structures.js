// The structures of a page: 8 gates a byte, and the row of each by its bits.

export const decodeBase64 = (text) => {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i += 1) bytes[i] = letters.charCodeAt(i);
  return bytes;
};

export class Structures {
  constructor(count, numGates, packed) {
    this.count = count;
    this.numGates = numGates;
    this.width = Math.ceil(numGates / 8);
    this.packed = packed;
    // Open addressing: a slot has the number of a row plus one, 0 is empty.
    this.mask = 2 ** Math.ceil(Math.log2(2 * count + 2)) - 1;
    this.slots = new Int32Array(this.mask + 1);
    for (let row = 0; row < count; row += 1) {
      let slot = this.hash(packed, row * this.width);
      while (this.slots[slot]) slot = (slot + 1) & this.mask;
      this.slots[slot] = row + 1;
    }
  }

  hash(bytes, start) {
    let hash = 0x811c9dc5;
    for (let i = start; i < start + this.width; i += 1) hash = Math.imul(hash ^ bytes[i], 0x01000193);
    hash ^= hash >>> 15;
    hash = Math.imul(hash, 0x2c1b3c6d);
    return (hash ^ (hash >>> 13)) & this.mask;
  }

  pack(bits) {
    const bytes = new Uint8Array(this.width);
    for (let i = 0; i < bits.length; i += 1) if (bits[i]) bytes[i >> 3] |= 1 << (i & 7);
    return bytes;
  }

  // The row of a structure, −1 for one that is not there.
  find(bits) {
    const bytes = this.pack(bits);
    for (let slot = this.hash(bytes, 0); this.slots[slot]; slot = (slot + 1) & this.mask) {
      const row = this.slots[slot] - 1;
      let same = true;
      for (let i = 0; same && i < this.width; i += 1) same = this.packed[row * this.width + i] === bytes[i];
      if (same) return row;
    }
    return -1;
  }

  isOn(row, gate) {
    return (this.packed[row * this.width + (gate >> 3)] >> (gate & 7)) & 1;
  }

  bits(row) {
    return Uint8Array.from({ length: this.numGates }, (_, gate) => this.isOn(row, gate));
  }

  text(row) {
    return this.bits(row).join('');
  }
}

// A structure as it is named: gates of a site that is off are off.
export const canonical = (gates, bits) =>
  bits.map((bit, i) => (gates[i].within === null ? bit : bit & bits[gates[i].within]));
