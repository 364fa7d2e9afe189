// What is known of a structure in one way of judging: from the table, or else predicted.

import { counted, formatInterval, formatNumber } from './format.js';
import { paretoFront } from './sorting.js';

export class Judged {
  constructor(words, floats, gates) {
    Object.assign(this, words);
    this.gates = gates;
    this.scores = words.scores.map((score) => ({
      ...score,
      sign: score.lowerIsBetter ? 1 : -1,
      values: floats(score.values),
      halfWidths: score.halfWidths === null ? null : floats(score.halfWidths),
    }));
    this.fronts = new Map();
    const { values } = this.scores[0];
    const known = new Uint32Array(values.length);
    this.count = 0;
    for (let row = 0; row < values.length; row += 1) if (!Number.isNaN(values[row])) known[this.count++] = row;
    this.known = this.count < values.length ? known.subarray(0, this.count) : null;
  }

  // The score that chooses where another is looked at: itself, or the first where it is of another split.
  choosing(score) {
    const split = (one) => one.label.split(' ')[0];
    return split(score) === split(this.scores[0]) ? score : this.scores[0];
  }

  // The Pareto front of a score against a cost, found once.
  front(cost, score, usable) {
    const key = `${cost.key}/${this.scores.indexOf(score)}`;
    if (!this.fronts.has(key)) {
      this.fronts.set(key, paretoFront(cost.rows, score.values, score.sign, usable));
    }
    return this.fronts.get(key);
  }

  // {state, value, halfWidth, meaning, told} of the first score of a structure in canonical form.
  look(bits, row) {
    const first = this.scores[0];
    if (row >= 0 && !Number.isNaN(first.values[row])) {
      const halfWidth = first.halfWidths ? first.halfWidths[row] : NaN;
      const told = 'From the table: this structure was evaluated.';
      return { state: 'evaluated', value: first.values[row], halfWidth, meaning: this.intervals, told };
    }
    const model = this.prediction;
    if (!model) {
      const few = `${counted(this.count, 'structure')} ${this.count === 1 ? 'is' : 'are'} too few to predict others from.`;
      return { state: 'unknown', value: NaN, halfWidth: NaN, told: `Not evaluated; ${few}` };
    }
    if (!(model.r2 > 0)) {
      const told = `Not evaluated. Predictions from ${counted(this.count, 'structure')} are no better than the mean of all: ${this.receipt()}`;
      return { state: 'unknown', value: NaN, halfWidth: NaN, told };
    }
    const isUnseen = (gate, i) => model.only[i] !== null && model.only[i] !== bits[i] && !gate.hidden(bits);
    const unseen = this.gates.filter(isUnseen);
    if (unseen.length) {
      const names = unseen.slice(0, 3).map((gate) => gate.name).join(', ') + (unseen.length > 3 ? ', …' : '');
      return { state: 'unknown', value: NaN, halfWidth: NaN, told: `Not evaluated, and not predicted: no structure that was evaluated tells what ${names} does.` };
    }
    const from = model.pairs[0].length ? 'main effects and interactions' : 'main effects';
    const told = `Not evaluated: predicted from ${from} of the gates. ${this.receipt()}`;
    return { state: 'predicted', value: this.predict(bits), halfWidth: 1.96 * model.rmse, meaning: model.intervals, told };
  }

  predict(bits) {
    const { constant, alone, pairs } = this.prediction;
    const [first, second, values] = pairs;
    let total = constant;
    for (let i = 0; i < bits.length; i += 1) if (!bits[i]) total += alone[i];
    for (let k = 0; k < values.length; k += 1) {
      if (!bits[first[k]] && !bits[second[k]]) total += values[k];
    }
    return total;
  }

  // How well it predicts what it was not fitted to.
  receipt() {
    const { structures, rmse, r2, tau } = this.prediction;
    return (
      `Checked on ${counted(structures, 'structure')}, each predicted from others: R² ${formatNumber(r2, 3)}, ` +
      `Kendall τ ${formatNumber(tau, 3)}, typical error ${formatNumber(rmse, 2)}.`
    );
  }

  // The other scores of a row, as rows of a list; none where they are not known.
  others(row) {
    return this.scores.slice(1).map((score) => ({
      label: score.label,
      text:
        row < 0 || Number.isNaN(score.values[row])
          ? 'not evaluated'
          : formatInterval(score.values[row], score.halfWidths ? score.halfWidths[row] : NaN),
    }));
  }
}
