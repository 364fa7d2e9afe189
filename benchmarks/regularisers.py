"""Random structures against dropout, weight decay and stochastic depth, at equal training FLOPs.

  python benchmarks/regularisers.py [--problem=images] [--results=FILE] [--minutes=M]

Claim to test: where examples are few, random structures give the full network a higher test
accuracy than no regulariser, and than the others at their own best settings.

Method: a residual MLP on 1,000 images of Fashion-MNIST (digits where it is not installed), and a
causal transformer on 256 sequences of 32 bytes of the standard library; the seed draws the
examples, the initial pool, their order and the structures. Every training takes the FLOPs of a
number of epochs with all gates on; structures that skip sites take more steps for them, down the
same cosine. The settings of each arm are chosen by accuracy on the validation split with the seeds
of `TUNED`, and the chosen ones are trained with those of `REPORTED` and judged on the test split.
Each example of a step has a structure of its own, drawn by gates that are independent. They are
computed as masks, so that rates are data and one program serves all settings; FLOPs are counted as
`PerSample` takes them, which gathers the examples that a gate is on for.

Rows are appended to FILE (JSON lines) as they come: a series that is stopped, or that is out of its
M minutes, goes on with the same command. The tables are of what the file has.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timing
from regularised import MEMBERS, PROBLEMS, SCORES, Setting, steps_of, trained

from additive_jax.report.statistics import mean_and_ci

TUNED, REPORTED = range(100, 103), range(8)
Rows = list[dict[str, Any]]


def rows_of(path: Path) -> Rows:
  """Returns what a file of results has."""
  if not path.exists():
    return []
  text = path.read_text()
  whole = text[: text.rfind('\n') + 1]  # a series may have been stopped in the middle of a line
  if whole != text:
    path.write_text(whole)
  return [json.loads(line) for line in whole.splitlines()]


def series(
  path: Path, name: str, settings: Iterable[Setting], seeds: Sequence[int], split: str, end: float
) -> None:
  """Trains what a file of results lacks, up to a moment of `time.time`."""
  keys = ('problem', 'setting', 'seed', 'split')
  done = {tuple(row[key] for key in keys) for row in rows_of(path)}
  for setting in settings:
    for seed in seeds:
      if (name, setting.words, seed, split) in done:
        continue
      if time.time() > end:
        return
      row = trained(name, setting, seed, split)
      with path.open('a') as file:
        file.write(json.dumps(row) + '\n')


# The settings of each arm, of which one is chosen on the validation split.
ARMS: dict[str, tuple[Setting, ...]] = {
  'nothing': (Setting(),),
  'dropout': tuple(Setting(dropout=rate) for rate in (0.05, 0.1, 0.2)),
  'weight decay': tuple(Setting(weight_decay=decay) for decay in (0.5, 1.0, 3.0)),
  'stochastic depth': tuple(Setting(keep=keep, ramp='linear') for keep in (0.8, 0.5, 0.2)),
  'stochastic depth, weight decay': (Setting(keep=0.2, ramp='linear', weight_decay=1.0),),
  'random structures': tuple(Setting(keep=keep) for keep in (0.8, 0.5, 0.3)),
  'random structures, weight decay': (
    Setting(keep=0.3, weight_decay=1.0),
    Setting(keep=0.3, weight_decay=0.5),
    Setting(keep=0.2, weight_decay=0.5),
  ),
  'random structures, dropout': (Setting(keep=0.8, dropout=0.1), Setting(keep=0.8, dropout=0.2)),
}
OURS = tuple(arm for arm in ARMS if arm.startswith('random'))
# Other forms of random structures, looked at on the validation split alone.
TRIED = (Setting(keep=0.5, agree=1.0), Setting(keep=0.5, distill=1.0), Setting(keep=0.5, last=0.2))


def scores_of(rows: Rows, name: str, setting: Setting, split: str, score: str) -> np.ndarray:
  """Returns a score of a setting for each seed, in their order."""
  key = (name, setting.words, split)
  by_seed = {r['seed']: r[score] for r in rows if (r['problem'], r['setting'], r['split']) == key}
  seeds = TUNED if split == 'valid' else REPORTED
  return np.array([by_seed[seed] for seed in seeds if seed in by_seed])


def chosen(rows: Rows, name: str) -> dict[str, Setting]:
  """Returns the setting of each arm that has the highest mean accuracy on the validation split, of
  those that have all seeds."""
  settings = {}
  for arm, grid in ARMS.items():
    accuracy = {s: scores_of(rows, name, s, 'valid', 'accuracy') for s in grid}
    known = {s: values.mean() for s, values in accuracy.items() if len(values) == len(TUNED)}
    if known:
      settings[arm] = max(known, key=lambda setting: known[setting])
  return settings


def interval(values: np.ndarray, digits: int, sign: str = '') -> str:
  """Returns a mean ± half its 95 % interval over the seeds."""
  (mean,), (half,) = mean_and_ci(np.asarray(values)[:, None])
  return f'{mean:{sign}.{digits}f} ± {half:.{digits}f}'.replace('-', '−')


def tell(rows: Rows, name: str) -> None:
  """Prints the tables of a problem: what was tuned, the arms, and differences of accuracy."""
  body = []
  for setting in dict.fromkeys([*(s for grid in ARMS.values() for s in grid), *TRIED]):
    get = functools.partial(scores_of, rows, name, setting, 'valid')
    if len(get('loss')):
      columns = [get(score).mean() for score in ('train_loss', 'loss', 'accuracy')]
      steps = steps_of(name, setting)[1]
      body.append([setting.words, steps, len(get('loss')), *(f'{value:.3f}' for value in columns)])
  head = ['setting', 'steps', 'seeds', 'train loss', 'loss', 'accuracy']
  timing.report(f'{name}: tuning, validation split', head, body)
  print()
  settings = {
    arm: setting
    for arm, setting in chosen(rows, name).items()
    if len(scores_of(rows, name, setting, 'test', 'loss')) == len(REPORTED)
  }
  body = []
  for arm, setting in settings.items():
    get = functools.partial(scores_of, rows, name, setting, 'test')
    cells = [arm, setting.words, steps_of(name, setting)[1], f'{get("train_loss").mean():.3f}']
    for score in SCORES:
      apart = get(score) - scores_of(rows, name, Setting(), 'test', score)
      cells += [interval(get(score), 3), interval(apart, 3, '+') if arm != 'nothing' else '']
    together = f'{get("ensemble_accuracy").mean():.3f}' if setting.is_ours else ''
    body.append([*cells, together])
  head = ['arm', 'setting', 'steps', 'train loss', 'test loss', '− nothing', 'test accuracy']
  head += ['− nothing', f'{MEMBERS} structures']
  timing.report(f'{name}: seeds {REPORTED[0]}–{REPORTED[-1]}, test split', head, body)
  print()
  body = []
  for other in (arm for arm in settings if arm not in OURS):
    cells = [other]
    for arm, score in [(arm, score) for arm in settings if arm in OURS for score in SCORES]:
      mine, its = (scores_of(rows, name, settings[a], 'test', score) for a in (arm, other))
      cells.append(interval(mine - its, 3, '+'))
    body.append(cells)
  head = [f'{arm}: {score}' for arm in settings if arm in OURS for score in SCORES]
  timing.report(f'{name}: random structures minus other arms', ['minus', *head], body)
  print()


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--problem', choices=PROBLEMS, action='append')
  parser.add_argument('--results', type=Path, default=Path('regularisers.jsonl'))
  parser.add_argument('--minutes', type=float, default=float('inf'))
  given = parser.parse_args()
  end = time.time() + 60 * given.minutes
  for name in given.problem or PROBLEMS:
    for grid in (*ARMS.values(), TRIED):
      series(given.results, name, grid, TUNED, 'valid', end)
    settings = chosen(rows_of(given.results), name)
    series(given.results, name, settings.values(), REPORTED, 'test', end)
    tell(rows_of(given.results), name)


if __name__ == '__main__':
  sys.exit(main())
