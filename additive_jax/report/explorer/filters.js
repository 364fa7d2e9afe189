// Which structures a line of words asks for:
//
//   1.0         gates in order, a point for either
//   +block_02   gates on whose names have this in them;   -mlp   off
//   loss<0.5    a column, with < <= > >= =;   flops<50%   of what all-on costs

const PATTERN = /^[01.]+$/;
const BOUND = /^([^<>=]+)(<=|>=|<|>|=)(-?[\d.]+(?:e[-+]?\d+)?)(%?)$/i;
const COMPARE = {
  '<': (a, b) => a < b,
  '>': (a, b) => a > b,
  '<=': (a, b) => a <= b,
  '>=': (a, b) => a >= b,
  '=': (a, b) => a === b,
};
const plainName = (text) => text.toLowerCase().replaceAll(/[\s_]/g, '');

// {tests, wrong}: functions of a row, all of which have to hold, and the words that mean nothing.
export const readFilter = (text, structures, gates, columns) => {
  const tests = [];
  const wrong = [];
  for (const word of text.trim().split(/\s+/).filter(Boolean)) {
    const bound = word.match(BOUND);
    if (PATTERN.test(word) && word.length <= structures.numGates) {
      [...word].forEach((letter, gate) => {
        if (letter !== '.') tests.push((row) => structures.isOn(row, gate) === Number(letter));
      });
    } else if (bound) {
      const name = plainName(bound[1]);
      const isNamed = (one) => plainName(one.label) === name || one.key === name;
      const column = columns.find(isNamed) ?? columns.find((one) => plainName(one.label).includes(name));
      if (!column || (bound[4] && !column.full)) wrong.push(word);
      else {
        const limit = bound[4] ? (Number(bound[3]) / 100) * column.full : Number(bound[3]);
        tests.push((row) => COMPARE[bound[2]](column.value(row), limit));
      }
    } else if (/^[-+]./.test(word) && gates.some((gate) => gate.name.includes(word.slice(1)))) {
      const on = word[0] === '+' ? 1 : 0;
      gates.forEach((gate, i) => {
        if (gate.name.includes(word.slice(1))) tests.push((row) => structures.isOn(row, i) === on);
      });
    } else wrong.push(word);
  }
  return { tests, wrong };
};
