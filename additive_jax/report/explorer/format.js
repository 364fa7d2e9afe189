// How numbers read: as in the tables of the page, four significant digits, whole numbers in full.

const superscripts = '⁰¹²³⁴⁵⁶⁷⁸⁹';
const minus = (text) => text.replaceAll('-', '−');

export const powerOfTen = (exponent) =>
  `10${exponent < 0 ? '⁻' : ''}${[...String(Math.abs(exponent))].map((digit) => superscripts[digit]).join('')}`;

export const formatNumber = (value, digits = 4) => {
  if (value === null || Number.isNaN(value)) return '–';
  if (!Number.isFinite(value)) return value > 0 ? '∞' : '−∞';
  if (value === 0) return '0';
  const [mantissa, exponent] = value.toExponential(digits - 1).split('e');
  const power = Number(exponent);
  if (power < -4 || power >= digits + 2) return minus(`${mantissa}×${powerOfTen(power)}`);
  return minus(value.toFixed(Math.max(0, digits - 1 - power)));
};

// Whole numbers in full; from 10⁹ on five digits of them, as 35.647 G.
export const formatWhole = (value) => {
  if (value === null || Number.isNaN(value)) return '–';
  if (Math.abs(value) >= 1e9) return formatShort(value, 5).replace(/(?=[A-Z]$)/, ' ');
  return minus(Math.round(value).toLocaleString('en-US'));
};

export const formatSigned = (value, digits = 3) => (value > 0 ? '+' : '') + formatNumber(value, digits);

export const formatShare = (share) => {
  const percent = 100 * share;
  return `${percent >= 99.95 || percent < 0.05 ? Math.round(percent) : percent.toFixed(1)} %`;
};

// With as many decimals as the interval has in two digits.
export const formatInterval = (value, halfWidth) => {
  if (!Number.isFinite(halfWidth)) return formatNumber(value);
  return `${formatNumber(value)} ± ${formatNumber(halfWidth, 2)}`;
};

const units = [
  [1e15, 'P'],
  [1e12, 'T'],
  [1e9, 'G'],
  [1e6, 'M'],
  [1e3, 'k'],
];
export const formatShort = (value, digits = 3) => {
  const [size, letter] = units.find(([size]) => Math.abs(value) >= size) ?? [1, ''];
  const scaled = value / size;
  return minus(`${Number(scaled.toPrecision(digits))}${letter}`);
};

export const formatSeconds = (seconds) => {
  if (seconds === null || Number.isNaN(seconds)) return '–';
  if (seconds >= 1) return `${formatNumber(seconds, 3)} s`;
  if (seconds >= 1e-3) return `${formatNumber(seconds * 1e3, 3)} ms`;
  return `${formatNumber(seconds * 1e6, 3)} µs`;
};

export const counted = (count, noun) => `${formatWhole(count)} ${noun}${count === 1 ? '' : 's'}`;
