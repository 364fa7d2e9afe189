// Where the points of a scatter are, and a grid over them that finds the nearest among a million.

const CELL = 8; // pixels of the grid
const NEAR = 20; // pixels within which a point is found

export class Points {
  // The rows of all `series`, one after another. `axes` has the size of the whole, the pixels of left,
  // right, top and bottom, and what is there: `from` and `to` of the costs, `high` and `low` of scores.
  constructor(series, axes) {
    const { width, height, left, right, top, bottom, from, to, high, low } = axes;
    this.series = series;
    this.firsts = [0];
    for (const { score } of series) this.firsts.push(this.firsts.at(-1) + score.values.length);
    const count = this.firsts.at(-1);
    const across = (right - left) / (to - from);
    const down = (bottom - top) / (high - low);
    [this.x, this.y] = [new Float32Array(count), new Float32Array(count)]; // 0 where nothing is known
    this.columns = Math.ceil(width / CELL);
    const cells = new Int32Array(count).fill(-1);
    // Points of a cell follow each other in `members`.
    this.starts = new Uint32Array(this.columns * Math.ceil(height / CELL) + 1);
    this.beyond = 0;
    series.forEach(({ cost, score }, number) => {
      const { values } = score;
      const costs = cost.rows;
      const first = this.firsts[number];
      for (let row = 0; row < values.length; row += 1) {
        const value = values[row];
        if (!Number.isFinite(value)) continue;
        if (value > high || value < low) this.beyond += 1;
        const x = left + (costs[row] - from) * across;
        const y = Math.min(Math.max(top + (high - value) * down, top), bottom);
        this.x[first + row] = x;
        this.y[first + row] = y;
        const cell = this.columns * Math.floor(y / CELL) + Math.floor(x / CELL);
        cells[first + row] = cell;
        this.starts[cell + 1] += 1;
      }
    });
    const { starts } = this;
    for (let i = 1; i < starts.length; i += 1) starts[i] += starts[i - 1];
    const next = starts.slice();
    this.members = new Uint32Array(starts.at(-1));
    for (let i = 0; i < count; i += 1) if (cells[i] >= 0) this.members[next[cells[i]]++] = i;
  }

  get count() {
    return this.members.length;
  }

  // The series of a point, and its row there.
  placeOf(point) {
    const number = this.firsts.findLastIndex((first) => first <= point);
    return [this.series[number], point - this.firsts[number]];
  }

  // The point nearest to a pixel, −1 if none is near; of one place the first, the best.
  nearest(x, y) {
    const [column, line, reach] = [Math.floor(x / CELL), Math.floor(y / CELL), Math.ceil(NEAR / CELL)];
    let [found, least] = [-1, NEAR * NEAR];
    for (let j = Math.max(0, line - reach); j <= line + reach; j += 1) {
      for (let i = Math.max(0, column - reach); i <= Math.min(this.columns - 1, column + reach); i += 1) {
        const cell = j * this.columns + i;
        if (cell + 1 >= this.starts.length) continue;
        for (let k = this.starts[cell]; k < this.starts[cell + 1]; k += 1) {
          const point = this.members[k];
          const away = (this.x[point] - x) ** 2 + (this.y[point] - y) ** 2;
          if (away < least || (away === least && point < found)) [found, least] = [point, away];
        }
      }
    }
    return found;
  }
}
