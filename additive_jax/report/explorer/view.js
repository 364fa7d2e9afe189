// The explorer of one network: its parts, kept at one structure.

import { Card, compared } from './card.js';
import { Chart } from './chart.js';
import { choice, element, field, setText } from './elements.js';
import { formatNumber, formatShare } from './format.js';
import { Legend, Network } from './network.js';
import { Rows, columnsOf } from './rows.js';
import { canonical } from './structures.js';

export class Explorer {
  // `beside` is what is known of other runs with the same network.
  constructor(root, known, beside = []) {
    const { words, structures, ranks, judged, costs } = known;
    Object.assign(this, { known, beside, words, structures, ranks, judged, costs });
    this.bits = known.allOn();
    this.parts(root);
    const cost = Math.max(0, this.costs.findIndex((one) => one.key === words.cost));
    this.selects[1].value = cost;
    this.choose(0, cost, 0);
    // At the full network, unless nothing is known of it.
    if (this.now.look(this.bits, this.structures.find(this.bits)).state === 'unknown') this.setRow(this.best());
  }

  parts(root) {
    this.network = new Network(this.words, (gate) => this.toggle(gate));
    this.legend = new Legend();
    this.card = new Card(this.words, this.known);
    this.chart = new Chart(({ structures }, row) => this.set(structures.bits(row)));
    this.rows = new Rows(this.structures, this.words.gates, (row) => this.setRow(row));
    this.slider = element('input', { type: 'range', step: '0.5', oninput: () => this.walk() });
    this.budget = element('output', { class: 'told' });
    const change = (place) => (index) => this.choose(...this.chosen.with(place, index));
    this.selects = [
      choice(this.judged.map((one) => one.label), change(0)),
      choice(this.costs.map((one) => one.name), change(1)),
      choice([], change(2)),
    ];
    const labels = ['Judged', 'Cost', 'Score of the scatter'];
    const fields = this.selects.map((select, i) => field(labels[i], select));
    fields[0].hidden = this.judged.length < 2;
    const set = (label, act) => element('button', { type: 'button', onclick: act }, label);
    const buttons = element(
      'div',
      { class: 'buttons' },
      set('All on', () => this.set(this.known.allOn())),
      set('Best', () => this.setRow(this.best())),
    );
    const part = (name, ...children) => element('div', { class: name }, ...children);
    root.querySelector('.parts-here').replaceWith(
      part('controls', fields[0], fields[1], buttons),
      part(
        'board',
        part('panel', this.network.node, this.legend.node),
        this.card.node,
        part(
          'panel',
          part('controls', fields[2]),
          this.chart.node,
          part('budget', field('Budget', this.slider, 'field wide'), this.budget),
        ),
      ),
      part('panel', this.rows.node),
    );
  }

  // Which way of judging, which cost and which score, by number.
  choose(judged, cost, score) {
    const isNew = !this.chosen || this.chosen[0] !== judged;
    this.chosen = [judged, cost, isNew ? 0 : score];
    this.now = this.judged[judged];
    this.cost = this.costs[cost];
    this.score = this.now.scores[this.chosen[2]];
    if (isNew) {
      this.selects[2].replaceChildren(...this.now.scores.map((one, i) => element('option', { value: i }, one.label)));
      // Ranks are those of the first way of judging, in which the rows come.
      const ranks = judged === 0 ? this.ranks : null;
      this.rows.set(columnsOf(this.now, this.costs, ranks), this.now.known, ranks ? '' : this.now.scores[0].label);
    }
    const own = this.known.series(this.now, this.score, this.cost);
    this.front = own.front;
    this.network.paint(this.cost, this.now);
    this.legend.paint(this.cost, this.now, this.network.strongest);
    this.chart.set([own, ...this.others(this.score)]);
    this.slider.disabled = !this.front.length;
    if (this.front.length) {
      const share = (row) => (100 * this.cost.rows[row]) / this.cost.full;
      this.slider.min = Math.ceil(2 * share(this.front[0])) / 2;
      this.slider.max = Math.max(100, Math.ceil(share(this.front.at(-1))));
      this.slider.value = this.slider.max;
    }
    this.tellBudget();
    this.show();
  }

  // What other runs have of a score.
  others(score) {
    return this.beside.map((one) => one.like(this.now, score, this.cost)).filter(Boolean);
  }

  best() {
    const { values, sign } = this.now.choosing(this.score);
    let found = 0;
    for (let row = 1; row < values.length; row += 1) {
      if (sign * values[row] < sign * values[found] || Number.isNaN(values[found])) found = row;
    }
    return found;
  }

  // The last structure of the front that the budget allows.
  within() {
    const limit = (Number(this.slider.value) / 100) * this.cost.full * (1 + 1e-9);
    return this.front.findLast((row) => this.cost.rows[row] <= limit) ?? this.front[0];
  }

  walk() {
    this.setRow(this.within());
    this.tellBudget();
  }

  tellBudget() {
    if (!this.front.length) return;
    const row = this.within();
    const full = this.structures.find(this.known.allOn());
    const value = this.score.values[row];
    const by = this.now.choosing(this.score);
    const best = by === this.score ? 'the best has' : `the best by ${by.label} has`;
    const than = full < 0 ? '' : compared(value, this.score.values[full]);
    const words =
      `At most ${formatNumber(Number(this.slider.value), 3)} % of the ${this.cost.name}: ${best} ${this.score.label} ` +
      `${formatNumber(value)}${than}, at ${formatShare(this.cost.rows[row] / this.cost.full)}.`;
    setText(this.budget, words);
    this.slider.setAttribute('aria-valuetext', words);
  }

  toggle(gate) {
    const host = this.words.gates[gate].within;
    if (host !== null && !this.bits[host]) return;
    this.bits[gate] ^= 1;
    this.show();
  }

  setRow(row) {
    this.set(this.structures.bits(row));
  }

  set(bits) {
    this.bits = bits;
    this.show();
  }

  show() {
    const bits = canonical(this.words.gates, this.bits);
    const row = this.structures.find(bits);
    const allOn = this.known.allOn();
    const full = this.now.look(allOn, this.structures.find(allOn));
    const place = row >= 0 && this.ranks && this.chosen[0] === 0 ? this.ranks[row] : null;
    this.network.show(this.bits, bits, this.now);
    const shown = { bits, row, judged: this.now, costs: this.costs, place, others: this.others(this.now.scores[0]) };
    this.card.show({ ...shown, full: full.state === 'evaluated' ? full.value : NaN });
    this.rows.mark(row);
    const isFirst = this.chosen[2] === 0;
    const found = this.now.look(bits, row);
    const value = isFirst ? found.value : row < 0 ? NaN : this.score.values[row];
    this.chart.mark(this.cost.of(bits), value, found.state);
  }
}
