// The scatter of a score against a cost on a canvas: of one run, or of several whose network is the same,
// each in a colour of its own.

import { element, setText } from './elements.js';
import { formatInterval, formatNumber, formatShort, formatWhole } from './format.js';
import { Points } from './points.js';

const MARGIN = { left: 62, right: 16, top: 14, bottom: 44 };
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
  // `choose` is given the series and the row of a point that is clicked on.
  constructor(choose) {
    this.base = element('canvas', { 'aria-hidden': 'true' });
    this.marks = element('canvas', { role: 'img' });
    this.tip = element('div', { class: 'tip', hidden: true });
    this.note = element('p', { class: 'told' });
    this.frame = element('div', { class: 'frame' }, this.base, this.marks, this.tip);
    this.names = element('p', { class: 'legend', hidden: true });
    this.node = element('div', { class: 'chart' }, this.frame, this.names, this.note);
    this.marks.addEventListener('pointermove', (event) => this.hover(event));
    this.marks.addEventListener('pointerleave', () => this.leave());
    this.marks.addEventListener('click', (event) => {
      const point = this.nearest(event);
      if (point >= 0) choose(...this.points.placeOf(point));
    });
    new ResizeObserver(() => this.resize()).observe(this.frame);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.draw());
  }

  // What is drawn, with the next frame: series of a cost, a score and the front of the two. The first is
  // that of the switches; others are of runs with the same network.
  set(series) {
    this.series = series;
    this.over = -1;
    this.tip.hidden = true;
    const [{ judged }] = series;
    this.names.hidden = series.length < 2;
    this.names.replaceChildren(
      ...series.map((one) => {
        const way = one.judged.label === judged.label ? '' : `, ${one.judged.label}`;
        const swatch = element('span', { class: 'swatch', 'aria-hidden': 'true', style: { '--colour': one.colour } });
        return element('span', {}, swatch, `${one.name}${way}`);
      }),
    );
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
    if (!this.width || !this.series) return;
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
    this.points = new Points(this.series, this.axes);
    const { beyond } = this.points;
    setText(this.note, beyond ? `${formatWhole(beyond)} far worse than most stand at the edge.` : '');
    this.note.hidden = !beyond;
    const context = this.base.getContext('2d');
    this.drawPoints(context);
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    this.drawAxes(context);
    this.series.toReversed().forEach((one) => this.drawFront(context, one));
    this.drawMarks();
  }

  // The ranges of the axes. What is far worse than most does not flatten the rest: it stands at the edge.
  scale() {
    const { sign } = this.series[0].score;
    const ys = [];
    const total = this.series.reduce((sum, { score }) => sum + score.values.length, 0);
    const step = Math.max(1, Math.floor(total / 20000));
    let [low, high, best] = [Infinity, -Infinity, Infinity];
    for (const { score, cost } of this.series) {
      const { values } = score;
      const xs = cost.rows;
      for (let i = 0; i < values.length; i += 1) {
        const value = sign * values[i];
        if (!Number.isFinite(value)) continue;
        if (value < best) best = value;
        if (xs[i] < low) low = xs[i];
        if (xs[i] > high) high = xs[i];
        if (i % step === 0) ys.push(value);
      }
    }
    ys.sort((a, b) => a - b);
    const [middle, most] = [ys[Math.floor(ys.length * 0.9)] ?? 1, ys.at(-1) ?? 1];
    const worst = Math.max(Math.min(most, middle + 1.5 * (middle - best)), best + 1e-9 + 1e-6 * Math.abs(best));
    const pad = (worst - best) * 0.06;
    const room = (high - low || Math.abs(high) || 1) * 0.04;
    this.axes = {
      width: this.width,
      height: this.height,
      left: MARGIN.left,
      right: this.width - MARGIN.right,
      top: MARGIN.top,
      bottom: this.height - MARGIN.bottom,
      from: low - room,
      to: high + room,
      low: sign > 0 ? best - pad : -worst - pad,
      high: sign > 0 ? worst + pad : -best + pad,
    };
  }

  x(value) {
    const { left, right, from, to } = this.axes;
    return left + ((value - from) / (to - from)) * (right - left);
  }

  y(value) {
    const { top, bottom, low, high } = this.axes;
    return Math.min(Math.max(top + ((high - value) / (high - low)) * (bottom - top), top), bottom);
  }

  // Of one run the points are grey and its front blue; of several each has its colour.
  tint({ colour }, alone) {
    return this.series.length > 1 ? colour : alone;
  }

  drawPoints(context) {
    context.clearRect(0, 0, this.base.width, this.base.height);
    if (this.points.count <= FEW) this.drawDiscs(context);
    else this.drawPixels(context);
  }

  drawDiscs(context) {
    const { x, y, count, firsts } = this.points;
    const [alpha, size] = count > 400 ? [0.45, 2.2] : [0.7, 3.2];
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.globalAlpha = alpha;
    for (let number = this.series.length - 1; number >= 0; number -= 1) {
      context.fillStyle = this.tint(this.series[number], this.colours.muted);
      for (let point = firsts[number]; point < firsts[number + 1]; point += 1) {
        if (x[point] === 0) continue; // not judged
        context.beginPath();
        context.arc(x[point], y[point], size, 0, 2 * Math.PI);
        context.fill();
      }
    }
    context.globalAlpha = 1;
  }

  // Each pixel is as dense as it has points.
  drawPixels(context) {
    const { width, height } = this.base;
    const { x, y, firsts } = this.points;
    const { ratio } = this;
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    for (let number = this.series.length - 1; number >= 0; number -= 1) {
      const counts = new Uint32Array(width * height);
      let most = 1;
      for (let point = firsts[number]; point < firsts[number + 1]; point += 1) {
        if (x[point] === 0) continue; // not judged
        const at = Math.floor(y[point] * ratio) * width + Math.floor(x[point] * ratio);
        counts[at] += 1;
        if (counts[at] > most) most = counts[at];
      }
      context.fillStyle = this.tint(this.series[number], this.colours.muted);
      const hex = context.fillStyle;
      const [red, green, blue] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
      const alphas = new Uint8Array(most + 1);
      for (let k = 1; k <= most; k += 1) alphas[k] = 90 + (165 * Math.log(k)) / Math.log(most + 1);
      for (let at = 0; at < counts.length; at += 1) {
        if (counts[at]) pixels[at] = ((alphas[counts[at]] << 24) | (blue << 16) | (green << 8) | red) >>> 0;
      }
    }
    context.putImageData(image, 0, 0);
  }

  drawAxes(context) {
    const { colours } = this;
    const { left, right, top, bottom, from, to, low, high } = this.axes;
    const [{ cost, score }] = this.series;
    context.font = this.font;
    context.strokeStyle = colours.line;
    context.fillStyle = colours.muted;
    context.lineWidth = 1;
    context.textBaseline = 'middle';
    context.textAlign = 'right';
    for (const tick of niceTicks(low, high, 5)) {
      const y = Math.round(this.y(tick)) + 0.5;
      context.globalAlpha = 0.6;
      context.beginPath();
      context.moveTo(left, y);
      context.lineTo(right, y);
      context.stroke();
      context.globalAlpha = 1;
      context.fillText(formatNumber(Number(tick.toPrecision(12)), 3), left - 8, y);
    }
    context.textAlign = 'center';
    context.textBaseline = 'top';
    for (const tick of niceTicks(from, to, Math.max(2, this.width / 120))) {
      const x = this.x(tick);
      const text = cost.key === 'seconds' ? cost.format(tick) : formatShort(tick);
      context.fillText(text, x, bottom + 8);
      context.fillRect(x, bottom, 1, 4);
    }
    context.fillRect(left, bottom, right - left, 1);
    context.fillStyle = colours.ink;
    context.fillText(cost.name, (left + right) / 2, bottom + 25);
    context.save();
    context.translate(12, (top + bottom) / 2);
    context.rotate(-Math.PI / 2);
    context.textBaseline = 'middle';
    context.fillText(score.label, 0, 0);
    context.restore();
  }

  drawFront(context, series) {
    const { front } = series;
    const { x, y, firsts } = this.points;
    const first = firsts[this.series.indexOf(series)];
    context.strokeStyle = this.tint(series, this.colours.help);
    context.fillStyle = context.strokeStyle;
    context.lineWidth = 1.6;
    context.lineJoin = 'round';
    context.beginPath();
    front.forEach((row, i) => {
      if (i) context.lineTo(x[first + row], y[first + front[i - 1]]);
      context.lineTo(x[first + row], y[first + row]);
    });
    context.stroke();
    for (const row of front) {
      context.beginPath();
      context.arc(x[first + row], y[first + row], front.length > 60 ? 2.4 : 3.6, 0, 2 * Math.PI);
      context.fill();
    }
  }

  // The structure that is set, and the one under the pointer.
  drawMarks() {
    const context = this.marks.getContext('2d');
    context.setTransform(this.ratio || 1, 0, 0, this.ratio || 1, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    // Until the next frame has drawn it there is nothing to mark.
    if (!this.current || this.points?.series !== this.series) return;
    const { x, y, state } = this.current;
    const { left, right, top, bottom } = this.axes;
    context.lineWidth = 2.4;
    context.strokeStyle = this.series.length > 1 ? this.colours.ink : this.colours.harm;
    context.setLineDash(state === 'predicted' ? [4, 3] : []);
    const at = Math.min(Math.max(this.x(x), left), right);
    context.beginPath();
    if (Number.isNaN(y)) {
      context.setLineDash([2, 5]);
      context.moveTo(at, top);
      context.lineTo(at, bottom);
    } else context.arc(at, this.y(y), 7.5, 0, 2 * Math.PI);
    context.stroke();
    context.setLineDash([]);
    if (this.over >= 0) {
      context.fillStyle = this.colours.ink;
      context.beginPath();
      context.arc(this.points.x[this.over], this.points.y[this.over], 4.5, 0, 2 * Math.PI);
      context.fill();
    }
    const [{ score, cost, front }] = this.series;
    const value = Number.isNaN(y) ? 'not known' : formatNumber(y);
    const of = this.series.length > 1 ? ` of ${this.series.length} runs` : '';
    this.marks.setAttribute(
      'aria-label',
      `${score.label} against ${cost.name}, ${formatWhole(this.points.count)} structures${of}, ` +
        `${front.length} on the Pareto front. This structure: ${value} at ${cost.format(x)}.`,
    );
  }

  nearest(event) {
    if (this.points?.series !== this.series) return -1;
    const box = this.marks.getBoundingClientRect();
    return this.points.nearest(event.clientX - box.left, event.clientY - box.top);
  }

  hover(event) {
    const point = this.nearest(event);
    if (point === this.over) return;
    this.over = point;
    this.tip.hidden = point < 0;
    this.marks.style.cursor = point < 0 ? 'default' : 'pointer';
    if (point >= 0) {
      const [series, row] = this.points.placeOf(point);
      const { values, halfWidths, label } = series.score;
      const text = series.structures.text(row);
      this.tip.replaceChildren(
        ...(this.series.length > 1 ? [element('strong', {}, series.name)] : []),
        element('code', {}, text.length > 40 ? `${text.slice(0, 39)}…` : text),
        element('div', {}, `${label} ${formatInterval(values[row], halfWidths ? halfWidths[row] : NaN)}`),
        element('div', {}, `${series.cost.format(series.cost.rows[row])} ${series.cost.name}`),
      );
      const [x, y] = [this.points.x[point], this.points.y[point]];
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
