// The structures of a page: 8 gates a byte, and the row of each by its bits.

export const decodeBase64 = (text) => {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i += 1) bytes[i] = letters.charCodeAt(i);
  return bytes;
};

const DIRECT = 22; // gates up to which a structure is its own place in a table

export class Structures {
  constructor(count, numGates, packed) {
    this.count = count;
    this.numGates = numGates;
    this.width = Math.ceil(numGates / 8);
    this.packed = packed;
    // A slot has the number of a row plus one, 0 is empty. With many gates slots are found by a hash,
    // the next free one for rows that meet (open addressing).
    const slots = numGates <= DIRECT ? 2 ** numGates : 2 ** Math.ceil(Math.log2(2 * count + 2));
    this.mask = slots - 1;
    this.slots = new Int32Array(slots);
    for (let row = 0; row < count; row += 1) {
      let slot = this.slot(packed, row * this.width);
      while (this.slots[slot]) slot = (slot + 1) & this.mask;
      this.slots[slot] = row + 1;
    }
  }

  slot(bytes, start) {
    if (this.numGates <= DIRECT) {
      return bytes[start] | (this.width > 1 ? bytes[start + 1] << 8 : 0) | (this.width > 2 ? bytes[start + 2] << 16 : 0);
    }
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
    let slot = this.slot(bytes, 0);
    for (let tries = 0; this.slots[slot] && tries < this.slots.length; tries += 1) {
      const row = this.slots[slot] - 1;
      let same = true;
      for (let i = 0; same && i < this.width; i += 1) same = this.packed[row * this.width + i] === bytes[i];
      if (same) return row;
      slot = (slot + 1) & this.mask;
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
