// The table of all structures: sorted and filtered by places in typed arrays, a page of it in the page.

import { element, field, setText } from './elements.js';
import { readFilter } from './filters.js';
import { formatInterval, formatWhole } from './format.js';
import { sortedPlaces } from './sorting.js';

const SHOWN = 15; // rows of a page

export class Rows {
  constructor(structures, gates, choose) {
    Object.assign(this, { structures, gates, choose });
    this.order = null; // null: as they come, best first
    this.sorted = null;
    this.start = 0;
    this.filter = '';
    this.input = element('input', { type: 'search', spellcheck: 'false', autocomplete: 'off', placeholder: '1.0  +block_02  loss<0.5  flops<50%' });
    this.input.addEventListener('input', () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.refilter(), structures.count > 50000 ? 200 : 0);
    });
    this.said = element('p', { class: 'told', role: 'status' });
    this.head = element('tr');
    this.body = element('tbody');
    this.table = element('table', {}, element('thead', {}, this.head), this.body);
    this.turn = ['First', 'Previous', 'Next', 'Last'].map((word, i) =>
      element('button', { type: 'button', onclick: () => this.go([0, this.start - SHOWN, this.start + SHOWN, Infinity][i]) }, word),
    );
    this.node = element(
      'div',
      { class: 'rows' },
      field('Filter', this.input, 'field filter'),
      this.said,
      element('div', { class: 'scroll', role: 'region', tabindex: '0', 'aria-label': 'Structures' }, this.table),
      element('div', { class: 'turn' }, ...this.turn),
    );
  }

  // Columns: {label, value(row), text(row), values, full}; sorted at first by the one of that label, or
  // as they come. `known` are the places of what is shown, all if it is null.
  set(columns, known, first) {
    this.columns = columns;
    this.known = known;
    const column = columns.find((one) => one.label === first);
    this.sorted = column ? { column, descending: !column.lowerIsBetter } : null;
    this.head.replaceChildren(
      element('th', { scope: 'col' }, 'structure'),
      ...columns.map((column) => {
        const cell = element('th', { scope: 'col', class: 'number' });
        cell.append(element('button', { type: 'button', class: 'sort', onclick: () => this.sortBy(column) }, column.label));
        return cell;
      }),
    );
    this.reorder();
  }

  sortBy(column) {
    const again = this.sorted?.column === column;
    this.sorted = { column, descending: again && !this.sorted.descending };
    this.reorder();
  }

  refilter() {
    this.filter = this.input.value;
    this.reorder();
  }

  reorder() {
    const { tests, wrong } = readFilter(this.filter, this.structures, this.gates, this.columns);
    let chosen = this.known;
    if (tests.length) {
      const found = new Uint32Array(this.total);
      let used = 0;
      for (let i = 0; i < found.length; i += 1) {
        const row = this.known ? this.known[i] : i;
        if (tests.every((test) => test(row))) found[used++] = row;
      }
      chosen = found.subarray(0, used);
    }
    this.wrong = wrong;
    this.input.setAttribute('aria-invalid', String(wrong.length > 0));
    this.order = this.sorted ? sortedPlaces(this.sorted.column.values, chosen, this.sorted.descending) : chosen;
    [...this.head.children].slice(1).forEach((cell, i) => {
      const isSorted = this.sorted?.column === this.columns[i];
      if (isSorted) cell.setAttribute('aria-sort', this.sorted.descending ? 'descending' : 'ascending');
      else cell.removeAttribute('aria-sort');
    });
    this.start = 0;
    this.draw();
  }

  get total() {
    return this.known ? this.known.length : this.structures.count;
  }

  get count() {
    return this.order ? this.order.length : this.structures.count;
  }

  go(start) {
    const last = Math.max(0, Math.floor((this.count - 1) / SHOWN) * SHOWN);
    this.start = Math.min(Math.max(0, start), last);
    this.draw();
  }

  mark(row) {
    this.current = row;
    for (const line of this.body.children) line.classList.toggle('current', Number(line.dataset.row) === row);
  }

  draw() {
    const end = Math.min(this.count, this.start + SHOWN);
    const lines = [];
    for (let at = this.start; at < end; at += 1) lines.push(this.line(this.order ? this.order[at] : at));
    this.body.replaceChildren(...lines);
    const range = this.count ? `${formatWhole(this.start + 1)} to ${formatWhole(end)} of ${formatWhole(this.count)}` : 'none';
    const of = this.count < this.total ? `, of ${formatWhole(this.total)} in all` : '';
    const wrong = this.wrong.length ? ` Not understood: ${this.wrong.join(' ')}.` : '';
    setText(this.said, `Structures ${range}${of}.${wrong}`);
    this.turn.forEach((button, i) => (button.disabled = i < 2 ? this.start === 0 : end >= this.count));
    this.mark(this.current);
  }

  line(row) {
    const text = this.structures.text(row);
    const button = element('button', { type: 'button', class: 'choose', 'aria-label': `Set the switches to ${text}`, onclick: () => this.choose(row) }, text);
    return element(
      'tr',
      { 'data-row': row },
      element('td', {}, button),
      ...this.columns.map((column) => element('td', { class: 'number' }, column.text(row))),
    );
  }
}

// The columns of what was judged, and of what structures cost.
export const columnsOf = (judged, costs, ranks) => [
  ...(ranks ? [{ label: 'rank', values: ranks, value: (row) => ranks[row], text: (row) => formatWhole(ranks[row]) }] : []),
  // What a score differs by from all-on stands in the card; the table would be too wide.
  ...judged.scores.filter(({ difference }) => !difference).map(({ label, values, halfWidths, lowerIsBetter }) => ({
    label,
    values,
    lowerIsBetter,
    value: (row) => values[row],
    text: (row) => formatInterval(values[row], halfWidths ? halfWidths[row] : NaN),
  })),
  ...costs.map((cost) => ({
    key: cost.key,
    label: cost.label,
    values: cost.rows,
    full: cost.full,
    value: (row) => cost.rows[row],
    text: (row) => cost.format(cost.rows[row]),
  })),
];
