// What the page knows of one network: its gates, its structures, and how these were judged and what
// they cost.

import { knownCosts } from './costs.js';
import { Judged } from './judged.js';
import { Structures, decodeBase64 } from './structures.js';

export class Known {
  // Takes the numbers out of the page. Of several runs each has a name, a colour and a folder.
  constructor(root) {
    const words = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
    const scripts = [...root.querySelectorAll('script[type="application/octet-stream"]')];
    const bytes = (index) => decodeBase64(scripts[index].textContent);
    const floats = (index) => new Float32Array(bytes(index).buffer);
    this.words = words;
    for (const gate of words.gates) gate.hidden = (bits) => gate.within !== null && !bits[gate.within];
    this.structures = new Structures(words.count, words.gates.length, bytes(words.bits));
    this.ranks = words.ranks === null ? null : new Int32Array(bytes(words.ranks).buffer);
    this.usable = words.comparable === null ? null : bytes(words.comparable);
    this.judged = words.judged.map((one) => new Judged(one, floats, words.gates));
    this.costs = knownCosts(words, this.structures);
    const { name, colour, folder } = root.dataset;
    Object.assign(this, { name, colour, folder });
    for (const script of scripts) script.remove();
  }

  allOn() {
    return new Uint8Array(this.words.gates.length).fill(1);
  }

  // What a scatter draws of it.
  series(judged, score, cost) {
    const { structures, name, colour } = this;
    return { structures, name, colour, judged, score, cost, front: judged.front(cost, judged.choosing(score), this.usable) };
  }

  // The same score, by the same cost, as another run has; judged in the same way, or else in the first
  // way with such a score; null where there is none.
  like(judged, score, cost) {
    const having = this.judged.filter((one) => one.scores.some(({ label }) => label === score.label));
    const way = having.find(({ label }) => label === judged.label) ?? having[0];
    const price = this.costs.find(({ key }) => key === cost.key);
    return way && price ? this.series(way, way.scores.find(({ label }) => label === score.label), price) : null;
  }
}
