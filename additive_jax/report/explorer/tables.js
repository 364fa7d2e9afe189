// The tables of the page, that Python has written: a click on a head sorts the rows, words filter them.

import { element, field } from './elements.js';

const MANY = 8; // rows from which a table has a filter

// A number as it is written in a cell, else NaN: `1,234`, `−0.1 ± 0.2`, `1.2×10⁻⁷`.
const numberIn = (text) => {
  const plain = text.trim().replaceAll(',', '').replaceAll('−', '-').replace('∞', 'Infinity');
  const found = plain.match(/^[-+]?(?:\d+\.?\d*|\.\d+|Infinity)/);
  if (!found) return NaN;
  const power = plain.match(/×10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)/);
  const exponent = power ? Number([...power[1]].map((one) => (one === '⁻' ? '-' : '⁰¹²³⁴⁵⁶⁷⁸⁹'.indexOf(one))).join('')) : 0;
  return Number(found[0]) * 10 ** exponent;
};

const enhance = (figure) => {
  const table = figure.querySelector('table');
  const body = table?.tBodies[0];
  if (!body || body.rows.length < 2) return;
  const lines = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const isNumber = head.classList.contains('number');
    const key = (line) => line.cells[column].textContent;
    const button = element('button', { type: 'button', class: 'sort' }, ...head.childNodes);
    button.addEventListener('click', () => {
      const descending = head.getAttribute('aria-sort') === 'ascending';
      heads.forEach((one) => one.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', descending ? 'descending' : 'ascending');
      const sign = descending ? -1 : 1;
      const order = lines.map((line) => [isNumber ? numberIn(key(line)) : key(line), line]);
      order.sort(([a], [b]) => {
        if (!isNumber) return sign * a.localeCompare(b);
        if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
        return sign * (a - b);
      });
      body.append(...order.map(([, line]) => line));
    });
    head.append(button);
  });
  if (lines.length < MANY) return;
  const input = element('input', { type: 'search', placeholder: 'words in a row' });
  input.addEventListener('input', () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const line of lines) {
      const text = line.textContent.toLowerCase();
      line.hidden = !words.every((word) => text.includes(word));
    }
  });
  figure.querySelector('.scroll').before(field('Filter', input, 'field filter'));
};

for (const figure of document.querySelectorAll('figure.table')) enhance(figure);
