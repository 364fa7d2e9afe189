// The scatter of a score against a cost on a canvas, with a grid over it that finds the point under the
// pointer among a million.

import { element, setText } from './elements.js';
import { formatInterval, formatNumber, formatShort } from './format.js';

const MARGIN = { left: 62, right: 16, top: 14, bottom: 44 };
const CELL = 8; // pixels of the grid
const NEAR = 20; // pixels within which a point is found
const FEW = 3000; // points up to which each is drawn as a disc

const niceTicks = (low, high, count) => {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= raw);
  const ticks = [];
  for (let at = Math.ceil(low / step); at * step <= high * (1 + 1e-12); at += 1) ticks.push(at * step);
  return ticks;
};

export class Chart {
  constructor(structures, choose) {
    this.structures = structures;
    this.base = element('canvas', { 'aria-hidden': 'true' });
    this.marks = element('canvas', { role: 'img' });
    this.tip = element('div', { class: 'tip', hidden: true });
    this.note = element('p', { class: 'told' });
    this.frame = element('div', { class: 'frame' }, this.base, this.marks, this.tip);
    this.node = element('div', { class: 'chart' }, this.frame, this.note);
    this.marks.addEventListener('pointermove', (event) => this.hover(event));
    this.marks.addEventListener('pointerleave', () => this.leave());
    this.marks.addEventListener('click', (event) => {
      const row = this.nearest(event);
      if (row >= 0) choose(row);
    });
    new ResizeObserver(() => this.resize()).observe(this.frame);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.draw());
  }

  // What is drawn, with the next frame: a cost, a score and the front of the two.
  set(cost, score, front) {
    Object.assign(this, { cost, score, front });
    cancelAnimationFrame(this.drawing);
    this.drawing = requestAnimationFrame(() => this.draw());
  }

  mark(x, y, state) {
    this.current = { x, y, state };
    this.drawMarks();
  }

  resize() {
    const width = this.frame.clientWidth;
    if (width && width !== this.width) this.draw();
  }

  draw() {
    this.width = this.frame.clientWidth;
    this.height = this.frame.clientHeight;
    if (!this.width || !this.cost) return;
    const style = getComputedStyle(this.node);
    this.colours = {};
    for (const name of ['ink', 'muted', 'line', 'help', 'harm', 'surface']) this.colours[name] = style.getPropertyValue(`--${name}`).trim();
    this.font = `12px ${style.fontFamily}`;
    this.ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.base, this.marks]) {
      canvas.width = Math.round(this.width * this.ratio);
      canvas.height = Math.round(this.height * this.ratio);
    }
    this.scale();
    this.place();
    const context = this.base.getContext('2d');
    this.drawPoints(context);
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    this.drawAxes(context);
    this.drawFront(context);
    this.drawMarks();
  }

  // The ranges of the axes. What is far worse than most does not flatten the rest: it stands at the edge.
  scale() {
    const { values, sign } = this.score;
    const [xs, ys] = [this.cost.rows, []];
    let [low, high] = [Infinity, -Infinity];
    const step = Math.max(1, Math.floor(values.length / 20000));
    let best = Infinity;
    for (let i = 0; i < values.length; i += 1) {
      const value = sign * values[i];
      if (!Number.isFinite(value)) continue;
      if (value < best) best = value;
      if (xs[i] < low) low = xs[i];
      if (xs[i] > high) high = xs[i];
      if (i % step === 0) ys.push(value);
    }
    ys.sort((a, b) => a - b);
    const [middle, most] = [ys[Math.floor(ys.length * 0.9)] ?? 1, ys.at(-1) ?? 1];
    const worst = Math.max(Math.min(most, middle + 1.5 * (middle - best)), best + 1e-9 + 1e-6 * Math.abs(best));
    const pad = (worst - best) * 0.06;
    this.low = sign > 0 ? best - pad : -worst - pad;
    this.high = sign > 0 ? worst + pad : -best + pad;
    const room = (high - low || Math.abs(high) || 1) * 0.04;
    [this.left, this.right] = [low - room, high + room];
  }

  x(value) {
    return MARGIN.left + ((value - this.left) / (this.right - this.left)) * (this.width - MARGIN.left - MARGIN.right);
  }

  y(value) {
    const at = MARGIN.top + ((this.high - value) / (this.high - this.low)) * (this.height - MARGIN.top - MARGIN.bottom);
    return Math.min(Math.max(at, MARGIN.top), this.height - MARGIN.bottom);
  }

  // Where each point is, and a grid: points of a cell follow each other in `members`.
  place() {
    const { values } = this.score;
    const costs = this.cost.rows;
    const count = values.length;
    const [bottom, top] = [this.height - MARGIN.bottom, MARGIN.top];
    const across = (this.width - MARGIN.left - MARGIN.right) / (this.right - this.left);
    const down = (bottom - top) / (this.high - this.low);
    const { left, high, low } = this;
    [this.px, this.py] = [new Float32Array(count), new Float32Array(count)];
    this.columns = Math.ceil(this.width / CELL);
    const cells = new Int32Array(count).fill(-1);
    const starts = new Uint32Array(this.columns * Math.ceil(this.height / CELL) + 1);
    let beyond = 0;
    for (let i = 0; i < count; i += 1) {
      const value = values[i];
      if (!Number.isFinite(value)) continue;
      if (value > high || value < low) beyond += 1;
      const x = MARGIN.left + (costs[i] - left) * across;
      const y = Math.min(Math.max(top + (high - value) * down, top), bottom);
      this.px[i] = x;
      this.py[i] = y;
      cells[i] = this.columns * Math.floor(y / CELL) + Math.floor(x / CELL);
      starts[cells[i] + 1] += 1;
    }
    for (let i = 1; i < starts.length; i += 1) starts[i] += starts[i - 1];
    const next = starts.slice();
    this.members = new Uint32Array(starts.at(-1));
    for (let i = 0; i < count; i += 1) if (cells[i] >= 0) this.members[next[cells[i]]++] = i;
    this.starts = starts;
    setText(this.note, beyond ? `${beyond.toLocaleString('en-US')} far worse than most stand at the edge.` : '');
    this.note.hidden = !beyond;
  }

  drawPoints(context) {
    context.clearRect(0, 0, this.base.width, this.base.height);
    if (this.members.length <= FEW) {
      context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
      context.fillStyle = this.colours.muted;
      context.globalAlpha = this.members.length > 400 ? 0.45 : 0.7;
      for (const row of this.members) {
        context.beginPath();
        context.arc(this.px[row], this.py[row], this.members.length > 400 ? 2.2 : 3.2, 0, 2 * Math.PI);
        context.fill();
      }
      context.globalAlpha = 1;
      return;
    }
    const { width, height } = this.base;
    const counts = new Uint32Array(width * height);
    let most = 1;
    const { px, py, ratio } = this;
    for (let row = 0; row < px.length; row += 1) {
      if (px[row] === 0) continue; // not judged
      const at = Math.floor(py[row] * ratio) * width + Math.floor(px[row] * ratio);
      counts[at] += 1;
      if (counts[at] > most) most = counts[at];
    }
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    context.fillStyle = this.colours.muted;
    const hex = context.fillStyle;
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    const alphas = new Uint8Array(most + 1);
    for (let k = 1; k <= most; k += 1) alphas[k] = 90 + (165 * Math.log(k)) / Math.log(most + 1);
    for (let at = 0; at < counts.length; at += 1) {
      if (counts[at]) pixels[at] = ((alphas[counts[at]] << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    }
    context.putImageData(image, 0, 0);
  }

  drawAxes(context) {
    const { colours } = this;
    const [bottom, right] = [this.height - MARGIN.bottom, this.width - MARGIN.right];
    context.font = this.font;
    context.strokeStyle = colours.line;
    context.fillStyle = colours.muted;
    context.lineWidth = 1;
    context.textBaseline = 'middle';
    context.textAlign = 'right';
    for (const tick of niceTicks(this.low, this.high, 5)) {
      const y = Math.round(this.y(tick)) + 0.5;
      context.globalAlpha = 0.6;
      context.beginPath();
      context.moveTo(MARGIN.left, y);
      context.lineTo(right, y);
      context.stroke();
      context.globalAlpha = 1;
      context.fillText(formatNumber(Number(tick.toPrecision(12)), 3), MARGIN.left - 8, y);
    }
    context.textAlign = 'center';
    context.textBaseline = 'top';
    for (const tick of niceTicks(this.left, this.right, Math.max(2, this.width / 120))) {
      const x = this.x(tick);
      const text = this.cost.key === 'seconds' ? this.cost.format(tick) : formatShort(tick);
      context.fillText(text, x, bottom + 8);
      context.fillRect(x, bottom, 1, 4);
    }
    context.fillRect(MARGIN.left, bottom, right - MARGIN.left, 1);
    context.fillStyle = colours.ink;
    context.fillText(this.cost.name, (MARGIN.left + right) / 2, bottom + 25);
    context.save();
    context.translate(12, (MARGIN.top + bottom) / 2);
    context.rotate(-Math.PI / 2);
    context.textBaseline = 'middle';
    context.fillText(this.score.label, 0, 0);
    context.restore();
  }

  drawFront(context) {
    context.strokeStyle = this.colours.help;
    context.fillStyle = this.colours.help;
    context.lineWidth = 1.6;
    context.lineJoin = 'round';
    context.beginPath();
    this.front.forEach((row, i) => {
      if (i) context.lineTo(this.px[row], this.py[this.front[i - 1]]);
      context.lineTo(this.px[row], this.py[row]);
    });
    context.stroke();
    for (const row of this.front) {
      context.beginPath();
      context.arc(this.px[row], this.py[row], this.front.length > 60 ? 2.4 : 3.6, 0, 2 * Math.PI);
      context.fill();
    }
  }

  // The structure that is set, and the one under the pointer.
  drawMarks() {
    const context = this.marks.getContext('2d');
    context.setTransform(this.ratio || 1, 0, 0, this.ratio || 1, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    if (!this.px || !this.current || this.px.length !== this.score.values.length) return;
    const { x, y, state } = this.current;
    context.lineWidth = 2.4;
    context.strokeStyle = this.colours.harm;
    context.setLineDash(state === 'predicted' ? [4, 3] : []);
    const at = Math.min(Math.max(this.x(x), MARGIN.left), this.width - MARGIN.right);
    context.beginPath();
    if (Number.isNaN(y)) {
      context.setLineDash([2, 5]);
      context.moveTo(at, MARGIN.top);
      context.lineTo(at, this.height - MARGIN.bottom);
    } else context.arc(at, this.y(y), 7.5, 0, 2 * Math.PI);
    context.stroke();
    context.setLineDash([]);
    if (this.over >= 0) {
      context.fillStyle = this.colours.ink;
      context.beginPath();
      context.arc(this.px[this.over], this.py[this.over], 4.5, 0, 2 * Math.PI);
      context.fill();
    }
    const value = Number.isNaN(y) ? 'not known' : formatNumber(y);
    this.marks.setAttribute(
      'aria-label',
      `${this.score.label} against ${this.cost.name}, ${this.members.length.toLocaleString('en-US')} structures, ` +
        `${this.front.length} on the Pareto front. This structure: ${value} at ${this.cost.format(x)}.`,
    );
  }

  // The row of the point nearest to the pointer, −1 if none is near; of one place the first, the best.
  nearest(event) {
    if (!this.starts) return -1;
    const box = this.marks.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const [column, line, reach] = [Math.floor(x / CELL), Math.floor(y / CELL), Math.ceil(NEAR / CELL)];
    let [found, least] = [-1, NEAR * NEAR];
    for (let j = Math.max(0, line - reach); j <= line + reach; j += 1) {
      for (let i = Math.max(0, column - reach); i <= Math.min(this.columns - 1, column + reach); i += 1) {
        const cell = j * this.columns + i;
        if (cell + 1 >= this.starts.length) continue;
        for (let k = this.starts[cell]; k < this.starts[cell + 1]; k += 1) {
          const row = this.members[k];
          const away = (this.px[row] - x) ** 2 + (this.py[row] - y) ** 2;
          if (away < least || (away === least && row < found)) [found, least] = [row, away];
        }
      }
    }
    return found;
  }

  hover(event) {
    const row = this.nearest(event);
    if (row === this.over) return;
    this.over = row;
    this.tip.hidden = row < 0;
    this.marks.style.cursor = row < 0 ? 'default' : 'pointer';
    if (row >= 0) {
      const { values, halfWidths, label } = this.score;
      const text = this.structures.text(row);
      this.tip.replaceChildren(
        element('code', {}, text.length > 40 ? `${text.slice(0, 39)}…` : text),
        element('div', {}, `${label} ${formatInterval(values[row], halfWidths ? halfWidths[row] : NaN)}`),
        element('div', {}, `${this.cost.format(this.cost.rows[row])} ${this.cost.name}`),
      );
      const [x, y] = [this.px[row], this.py[row]];
      const isRight = x > this.width / 2;
      this.tip.style.left = isRight ? '' : `${x + 12}px`;
      this.tip.style.right = isRight ? `${this.width - x + 12}px` : '';
      this.tip.style.top = `${Math.min(y + 8, this.height - 80)}px`;
    }
    this.drawMarks();
  }

  leave() {
    this.over = -1;
    this.tip.hidden = true;
    this.drawMarks();
  }
}
