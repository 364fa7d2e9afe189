"""What an explorer shows of a table of structures, its space and what gates cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from additive_jax.gates.networks import canonical, num_networks
from additive_jax.gates.structure import Space
from additive_jax.report.explorer import (
  Explorer,
  Export,
  Gate,
  Judged,
  Prediction,
  Score,
  Site,
)
from additive_jax.report.wording import score_name
from additive_jax.run.latency import Latency
from additive_jax.run.tasks import LOSS, Task
from additive_jax.search.gate_effects import Effects, effects
from additive_jax.search.sparse import fit

FEWEST = 10  # structures that predictions of others can be checked on
FITTED = 20_000  # structures that they are fitted to, of more so many at random
PAIRED = 64  # gates up to which pairs are fitted
DIFFERENCE = '_minus_all_on'  # of the column of a loss, paired by seed
NONE = Export()
MEAN = 'mean over all structures'
FITTED_MEAN = 'mean over all structures, as fitted'


@dataclasses.dataclass(frozen=True)
class Way:
  """A way in which the structures of a table were judged.

  Attributes:
    label: what it is called.
    prefix: of the columns of its scores.
    split: what their split is called.
    also: prefixes of further columns of scores, and what their split is called.
    export: how such a structure becomes files.
    variant: the rows of the table that are meant, by their column `variant`; '' is all.
  """

  label: str
  prefix: str = ''
  split: str = 'test'
  also: tuple[tuple[str, str], ...] = ()
  export: Export = NONE
  variant: str = ''


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
  """What gates do, as a run has found it.

  Attributes:
    prefix: of the loss that it is of.
    effects: change of the loss with each gate on, [n].
    half_widths: of their 95 % intervals, [n].
    meaning: in words.
  """

  prefix: str
  effects: Float[np.ndarray, ' n']
  half_widths: Float[np.ndarray, ' n'] | None = None
  meaning: str = MEAN


def of_table(
  space: Space,
  table: pd.DataFrame,
  ways: Sequence[Way],
  task: Task,
  *,
  sites: Sequence[tuple[str, int]] = (),
  latency: Latency | None = None,
  known: Known | None = None,
) -> Explorer:
  """Returns what an explorer shows of a table of structures.

  >>> gates = aj.Gate('a/residual', 10.0, 2), aj.Gate('b/residual', 20.0, 4)
  >>> table = pd.DataFrame({'structure': ['11', '10'], 'loss': [0.5, 0.75]})
  >>> space, task = aj.Space(gates, 5.0, 1), Task('classification')
  >>> of_table(space, table, [Way('in the pool')], task).sites[0].label
  'a'

  Args:
    space: the gates, with costs.
    table: a row for each structure, best first, with the scores that `ways` name.
    ways: how they were judged; those of which the table has no loss are left out.
    task: what the scores mean.
    sites: labels of the network's sites and their numbers of gates; () reads them off the names.
    latency: what gates take, where it was measured.
    known: the effects that the run has found.
  """
  bits = canonical(space, bits_of_texts(table['structure'], len(space)))
  if 'variant' in table:
    _, first, inverse = np.unique(bits, axis=0, return_index=True, return_inverse=True)
    rows, inverse = bits[first], inverse.reshape(-1)
  else:
    rows, inverse = bits, np.arange(len(bits))
  judged = []
  for way in ways:
    scores = _scores(table, way, task, inverse, len(rows))
    if scores:
      judged.append(_judged(way, scores, rows, space, known))
  steps = table.get('steps')
  longest = None if steps is None or 'variant' in table else (steps == steps.max()).to_numpy()
  ranks = table['rank'].to_numpy() if 'rank' in table and 'variant' not in table else None
  is_ranked = ranks is not None and np.isfinite(ranks).all()
  return Explorer(
    gates=_gates(space, latency),
    sites=_sites(space, sites),
    bits=rows,
    judged=tuple(judged),
    fixed=Gate(
      'fixed',
      float(space.fixed_flops or 0),
      float(space.fixed_params or 0),
      None if latency is None else latency.fixed,
    ),
    shared=tuple(
      (float(one.params), tuple(space.index(name) for name in one.gates)) for one in space.shared
    ),
    ranks=ranks if is_ranked else None,
    comparable=longest,
  )


def bits_of_texts(texts: Iterable[str], num_gates: int) -> Bool[np.ndarray, 'S n']:
  """Returns structures of a table as bits, a million in a second.

  >>> bits_of_texts(['10', '11'], 2).astype(int).tolist()
  [[1, 0], [1, 1]]
  """
  letters = np.frombuffer(''.join(texts).encode('ascii'), np.uint8)
  return letters.reshape(-1, num_gates) == ord('1')


def _gates(space: Space, latency: Latency | None) -> tuple[Gate, ...]:
  seconds = [None] * len(space) if latency is None else list(latency.seconds)
  return tuple(
    Gate(
      gate.name,
      float(gate.flops or 0),
      float(gate.params or 0),
      seconds[i],
      None if gate.within is None else space.index(gate.within),
    )
    for i, gate in enumerate(space)
  )


def _sites(space: Space, sites: Sequence[tuple[str, int]]) -> tuple[Site, ...]:
  """The sites with the numbers of their gates, which stand in the order of the sites."""
  if not sites:
    labels = [gate.name.rpartition('/')[0] or gate.name for gate in space]
    sites = [(label, labels.count(label)) for label in dict.fromkeys(labels)]
  starts = np.cumsum([0, *(count for _, count in sites)]).tolist()
  return tuple(
    Site(label, tuple(range(start, start + count))) for (label, count), start in zip(sites, starts)
  )


def _scores(table, way: Way, task: Task, inverse, count: int) -> tuple[Score, ...]:
  """The scores of one way, of structures that stand in several rows the mean."""
  rows = slice(None) if not way.variant else (table['variant'] == way.variant).to_numpy()
  found = []
  for prefix, split in ((way.prefix, way.split), *way.also):
    for score in task.scores:
      if (name := f'{prefix}{score}') not in table:
        continue
      values = _by_structure(table[name].to_numpy(float)[rows], inverse[rows], count)
      widths = table.get(f'{name}_ci95')
      if widths is not None:
        widths = _by_structure(widths.to_numpy(float)[rows], inverse[rows], count)
      found.append(Score(f'{split} {score_name(score)}', values, widths, task.sign(score) > 0))
    paired = f'{prefix}{LOSS}{DIFFERENCE}'
    if paired in table and not table[f'{paired}_ci95'].isna().all():
      values, widths = (
        _by_structure(table[column].to_numpy(float)[rows], inverse[rows], count)
        for column in (paired, f'{paired}_ci95')
      )
      found.append(Score(f'{split} {LOSS} − all-on', values, widths, difference=True))
  return tuple(found) if f'{way.prefix}{LOSS}' in table else ()


def _by_structure(values, inverse, count: int) -> Float[np.ndarray, ' S']:
  if len(values) == count and np.array_equal(inverse, np.arange(count)):
    return values
  sums = np.bincount(inverse, values, minlength=count)
  times = np.bincount(inverse, minlength=count)
  return np.where(times > 0, sums / np.maximum(times, 1), np.nan)


def _judged(way: Way, scores, bits, space: Space, known) -> Judged:
  """A way with its effects, and predictions where some networks were not evaluated."""
  losses = scores[0].values
  finite = np.isfinite(losses)
  count, every = int(finite.sum()), num_networks(space)
  prediction = main = widths = None
  meaning = MEAN
  if count >= FEWEST and count < every:
    found = fitted(bits[finite], losses[finite], space)
    prediction, main, meaning = predicted(found, bits[finite]), found.main, FITTED_MEAN
  elif 2 <= count == every <= FITTED:
    main = fit(bits, losses).main
  if known is not None and known.prefix == way.prefix:
    main, widths, meaning = known.effects, known.half_widths, known.meaning
  return Judged(way.label, scores, prediction, main, widths, meaning, way.export)


def fitted(bits: Bool[np.ndarray, 'S n'], losses: Float[np.ndarray, ' S'], space: Space) -> Effects:
  """Returns the effects of gates in structures, with interactions where these predict better what
  was held out; of very many structures those of some, and of very many gates without."""
  if len(bits) > FITTED:
    some = np.random.default_rng(0).permutation(len(bits))[:FITTED]
    bits, losses = bits[some], losses[some]
  orders = (2, 1) if len(space) <= PAIRED else (1,)
  found = [effects(bits, losses, gates=space, order=order) for order in orders]
  return min(found, key=lambda one: one.held_out.rmse if one.held_out else np.inf)


def predicted(found: Effects, bits: Bool[np.ndarray, 'S n']) -> Prediction | None:
  """Returns the model of a fit with its receipt; None where there is none."""
  receipt = found.held_out
  if receipt is None:
    return None
  same = (bits == bits[0]).all(0)
  return Prediction(
    constant=found.model.constant,
    alone=found.model.alone,
    pairs=found.model.pairs,
    only=np.where(same, bits[0].astype(int), -1),
    structures=receipt.structures,
    rmse=receipt.rmse,
    r2=receipt.r2,
    tau=receipt.tau,
  )
