// What is known of the structure that the switches make.

import { copyButton, element, setText } from './elements.js';
import { counted, formatInterval, formatShare, formatSigned } from './format.js';

const STATES = { evaluated: 'Evaluated', predicted: 'Predicted', unknown: 'Not evaluated' };

// The directory of the run: the one that the page lies in, where it was opened as a file of it, or a
// folder from there.
const rawDirectory = ({ folder, name }) => {
  if (location.protocol !== 'file:') return name ?? 'RUN';
  const parts = decodeURIComponent(location.pathname).replace(/\/[^/]*$/, '').split('/');
  for (const part of folder?.split('/') ?? []) {
    if (part === '..') parts.pop();
    else if (part !== '.') parts.push(part);
  }
  return parts.join('/');
};
const runDirectory = (run) => {
  const folder = rawDirectory(run);
  return /^[\w@%+=:,./-]+$/.test(folder) ? folder : `'${folder.replaceAll("'", `'\\''`)}'`;
};

export class Card {
  // `run` has its name and its folder, of several on a page.
  constructor(words, run) {
    Object.assign(this, { words, run });
    this.text = '';
    this.badge = element('span', { class: 'badge' });
    this.structure = element('code', { class: 'structure' });
    this.value = element('strong', { class: 'value' });
    this.name = element('span', { class: 'of' });
    this.told = element('p', { class: 'told' });
    this.list = element('dl', { class: 'facts' });
    this.off = element('p', { class: 'off-gates' });
    this.heading = element('h3', {}, 'Export it');
    this.command = element('code', { class: 'command' });
    this.commandCopy = copyButton('Copy', 'Copy the command that exports this structure', () => this.command.textContent);
    this.exports = element('div', { class: 'export below' }, this.command, this.commandCopy);
    this.reason = element('p', { class: 'told' });
    this.status = element('p', { class: 'unseen', role: 'status' });
    this.node = element(
      'section',
      { class: 'card', 'aria-label': 'This structure' },
      element('div', { class: 'head' }, element('h3', {}, 'This structure'), this.badge),
      element('div', { class: 'export' }, this.structure, copyButton('Copy', 'Copy the structure', () => this.text)),
      element('p', { class: 'main' }, this.value, this.name),
      this.told,
      this.list,
      this.off,
      this.heading,
      this.exports,
      this.reason,
      this.status,
    );
    this.facts = new Map();
  }

  // {bits, row, judged, costs, place, others, full} of the structure; `full` is what is known of all-on,
  // `others` what other runs have of the same score.
  show({ bits, row, judged, costs, place, others, full }) {
    const found = judged.look(bits, row);
    this.text = bits.join('');
    setText(this.structure, this.text);
    setText(this.badge, STATES[found.state]);
    this.badge.dataset.state = found.state;
    setText(this.value, formatInterval(found.value, found.halfWidth));
    const margin = found.meaning && Number.isFinite(found.halfWidth) ? ` (${found.meaning})` : '';
    setText(this.name, judged.scores[0].label + margin);
    setText(this.told, found.told);
    const facts = [];
    const known = found.state === 'evaluated' && judged.scores.some(({ difference }) => difference);
    if (found.state !== 'unknown' && !Number.isNaN(full) && !known) facts.push(['against all-on', formatSigned(found.value - full)]);
    for (const { label, text } of judged.others(row)) facts.push([label, text]);
    for (const cost of costs) {
      const value = cost.of(bits);
      facts.push([cost.name, `${cost.format(value)}`, `${formatShare(value / cost.full)} of all-on`]);
    }
    if (place !== null) facts.push(['rank', place]);
    for (const other of others) facts.push(this.elsewhere(other, bits, found));
    this.list.replaceChildren(...facts.map(([name, ...values]) => this.fact(name, values)));
    this.tellOff(bits);
    this.tellExport(judged.export);
    clearTimeout(this.timer);
    const share = costs.length ? `; ${formatShare(costs[0].of(bits) / costs[0].full)} of the ${costs[0].name}` : '';
    const words = `${STATES[found.state]}: ${judged.scores[0].label} ${formatInterval(found.value, found.halfWidth)}${share}`;
    this.timer = setTimeout(() => setText(this.status, words), 250);
  }

  fact(name, [value, note]) {
    const node = element('div', {}, element('dt', {}, name), element('dd', {}, String(value)));
    if (note) node.lastChild.append(element('small', {}, ` ${note}`));
    return node;
  }

  // A score of this structure in another run, and how far it is from the one here.
  elsewhere({ name, structures, judged, score }, bits, here) {
    const row = structures.find(bits);
    const other = { state: 'evaluated', value: score.values[row] ?? NaN, halfWidth: score.halfWidths?.[row] ?? NaN };
    const there = score === judged.scores[0] ? judged.look(bits, row) : other;
    if (Number.isNaN(there.value)) return [`in ${name}`, 'not evaluated'];
    const notes = Number.isNaN(here.value) ? [] : [`${formatSigned(there.value - here.value)} from here`];
    if (there.state === 'predicted') notes.push('predicted');
    return [`in ${name}`, formatInterval(there.value, there.halfWidth), notes.join(', ')];
  }

  tellOff(bits) {
    const gates = this.words.gates.filter((gate, i) => !bits[i]);
    const names = gates.slice(0, 6).map((gate) => gate.name).join(', ') + (gates.length > 6 ? ', …' : '');
    setText(this.off, gates.length ? `${counted(gates.length, 'gate')} off: ${names}` : 'All gates on: the full network.');
  }

  tellExport({ command, reason }) {
    const folder = runDirectory(this.run);
    setText(this.command, command.replaceAll('{run}', () => folder).replaceAll('{path}', () => JSON.stringify(rawDirectory(this.run))).replaceAll('{structure}', () => this.text));
    this.heading.hidden = !command && !reason;
    this.exports.hidden = !command;
    setText(this.reason, reason);
    this.reason.hidden = !reason;
  }
}

export const compared = (value, full) => (Number.isNaN(full) ? '' : `, ${formatSigned(value - full)} against all-on`);
