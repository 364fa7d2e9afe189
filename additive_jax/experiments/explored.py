"""The explorer of a run's page: made of its table of structures, its space and what gates cost.

Every experiment with such a table has one, of two structures or more; a study of one's own too.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from additive_jax.data import KINDS
from additive_jax.experiments.network import NETWORKS
from additive_jax.experiments.session import Session
from additive_jax.files.journal import Journal
from additive_jax.gates.networks import canonical, num_networks
from additive_jax.gates.structure import Space
from additive_jax.models.additive import sites_of
from additive_jax.report.explorer import (
  Explorer,
  Export,
  Gate,
  Judged,
  Prediction,
  Score,
  Site,
  explorer,
)
from additive_jax.report.page import Piece
from additive_jax.report.wording import plain, score_name
from additive_jax.run.latency import Latency
from additive_jax.run.tasks import LOSS, Task
from additive_jax.search.gate_effects import Effects, effects
from additive_jax.search.sparse import fit

FEWEST = 10  # structures that predictions of others can be checked on
FITTED = 20_000  # structures that they are fitted to, of more so many at random
PAIRED = 64  # gates up to which pairs are fitted
LATENCIES = 'latency.json'  # of a pruning under a budget of latency
NONE = Export()
ALONE = 'networks that were trained alone are kept with config.sweep.keep_alone'


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


def explored(session: Session, result: Any) -> Piece | None:
  """Returns the explorer of a run; None where it judged fewer than two structures, or its space
  says nothing of costs.

  Args:
    result: the tables of the run, a `study.Result`.
  """
  table, ways = structures_of(session, result)
  space = session.space
  if table is None or space.fixed_flops is None or table['structure'].nunique() < 2:
    return None
  shown = of_table(
    space,
    table,
    ways,
    session.task,
    sites=[(site.label, len(site.names)) for site in sites_of(session.model)],
    latency=_latency(session),
    known=_effects_of(session, result),
  )
  return explorer(shown)


def of_table(
  space: Space,
  table: pd.DataFrame,
  ways: Sequence[Way],
  task: Task,
  *,
  sites: Sequence[tuple[str, int]] = (),
  latency: Latency | None = None,
  known: tuple[str, pd.DataFrame] | None = None,
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
    known: a prefix, and the main effects on the loss of that prefix, a frame of `gate`, `effect`
      and perhaps `ci95`.
  """
  bits = canonical(space, table['structure'])
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
  prediction = main = widths = None
  if finite.sum() >= FEWEST and finite.sum() < num_networks(space):
    found = fitted(bits[finite], losses[finite], space)
    prediction, main = predicted(found, bits[finite]), found.main
  elif finite.sum() >= 2 and finite.sum() == num_networks(space) and len(bits) <= FITTED:
    main = fit(bits, losses).main
  if known is not None and known[0] == way.prefix:
    main, widths = known[1]['effect'].to_numpy(float), known[1].get('ci95')
  if main is None and finite.sum() >= FEWEST:
    main = fitted(bits[finite], losses[finite], space).main
  half_widths = None if widths is None else np.asarray(widths, float)
  return Judged(way.label, scores, prediction, main, half_widths, way.export)


def fitted(bits: Bool[np.ndarray, 'S n'], losses: Float[np.ndarray, ' S'], space: Space) -> Effects:
  """Returns the effects and interactions of gates in structures, of very many those of some, and of
  very many gates the effects alone."""
  if len(bits) > FITTED:
    some = np.random.default_rng(0).permutation(len(bits))[:FITTED]
    bits, losses = bits[some], losses[some]
  return effects(bits, losses, gates=space, order=2 if len(space) <= PAIRED else 1)


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


def _latency(session: Session) -> Latency | None:
  path = session.rundir.path / LATENCIES
  return Latency.read(path) if path.exists() else None


def structures_of(session: Session, result: Any) -> tuple[pd.DataFrame | None, list[Way]]:
  """Returns the table of a run's structures, and how they were judged."""
  tables, name = result.tables, session.config.experiment
  table = tables.get('candidates' if name == 'prune' else 'structures')
  if table is None or 'structure' not in table:
    return None, []
  if name == 'prune':
    return _of_prune(session, table)
  if name == 'sweep':
    return table, _of_sweep(session, table)
  valid = (('valid_', 'validation'),)
  if name == 'cotrain':
    ways = [Way('co-trained in one pool', also=valid, export=exporting(session))]
    return table, [*ways, Way('trained alone', 'alone_', export=exporting(session, '--alone'))]
  if name == 'stochastic':
    return table, _of_stochastic(session, result)
  if 'variant' in table:
    return table, [Way(plain(v), variant=v) for v in table['variant'].unique()]
  return table, [Way('as the run judged them', also=valid)]


def _of_sweep(session: Session, table: pd.DataFrame) -> list[Way]:
  split, modes = session.chosen_word, session.config.sweep.modes
  further = (('test_', 'test'),) if session.data.valid is not None else ()
  alone = exporting(session, '--alone') if session.config.sweep.keep_alone else Export(reason=ALONE)
  pool = exporting(session)
  if 'standalone' not in modes:
    return [Way('in the shared pool', '', split, further, pool)]
  ways = [Way('trained alone', '', split, further, alone)]
  return [*ways, Way('in the shared pool', 'shared_', split, (), pool)]


def _of_stochastic(session: Session, result: Any) -> list[Way]:
  none, first, *others = result.tables['variants']['variant']
  seed, ways = session.config.seed, []
  for name in (first, none, *others):
    prefix = '' if name == first else f'{name}_'
    label = f'trained with random structures: {plain(name)}' if name != none else 'trained all-on'
    export = exporting(session, f'--checkpoint={name}-seed{seed}')
    ways.append(Way(label, prefix, export=export))
  return ways


def _of_prune(session: Session, table: pd.DataFrame) -> tuple[pd.DataFrame, list[Way]]:
  """The candidates, and what the searches evaluated beside them: of the whole split the same loss,
  of calibration examples another."""
  options, seed = session.config.prune, session.config.seed
  path = session.rundir.journals / 'search-0.jsonl'
  lines = [line for line in Journal(path).sound()[1:] if line['share'] == 1.0]
  known = pd.DataFrame(
    {
      'structure': [text for line in lines for text in line['structures']],
      'searched_loss': [loss for line in lines for loss in line['loss']],
    }
  ).drop_duplicates('structure')
  table = table.merge(known, how='outer', on='structure')
  whole = not options.calibration_examples and session.task.rank_by == LOSS
  if whole:
    table[LOSS] = table[LOSS].fillna(table['searched_loss'])
  table = table.sort_values(['rank', 'searched_loss'], kind='stable', ignore_index=True)
  table['searched_loss'] = table['searched_loss'].replace(np.inf, np.nan)
  split = session.chosen_word
  pool, healed = (exporting(session, f'--checkpoint={n}-seed{seed}') for n in ('pool', 'healed'))
  ways = [Way('in the pool, before healing', '', split, export=pool)]
  ways.append(Way('healed', 'healed_', also=(('healed_valid_', 'validation'),), export=healed))
  if not whole and session.task.rank_by == LOSS:
    label = f'before healing, by {options.calibration_examples:,} examples of the search'
    ways.append(Way(label, 'searched_', 'calibration', export=pool))
  return table, ways


def _effects_of(session: Session, result: Any) -> tuple[str, pd.DataFrame] | None:
  """The main effects that a sweep has found, and the prefix of the losses that they are of."""
  frame = result.tables.get('effects')
  if frame is None or 'effect' not in frame or session.config.experiment != 'sweep':
    return None
  both = 'standalone' in session.config.sweep.modes and 'shared' in session.config.sweep.modes
  searched = len(result.tables['structures']) < num_networks(session.space)
  return ('shared_' if both and searched else '', frame)


def exporting(session: Session, *arguments: str) -> Export:
  """Returns how a structure of a run becomes files: the command, or the call where data or network
  came from Python."""
  if session.pretrained is not None:
    return Export(reason='The chosen structure of a pretrained network is in RUN/exported.')
  config = session.rundir.read_json('config.json')
  data, model = config.get('data', {}), config.get('model', {})
  kinds = {name.replace('_', '') for name in NETWORKS}
  is_own = str(model.get('name', '')).lower().replace('_', '') not in kinds
  if 'digest' in data and str(data.get('name', '')).partition(':')[0] not in KINDS:
    given = ['model=model'] * is_own + ['data=data'] + list(_as_keywords(arguments))
    return Export(f"aj.export_run({{path}}, '{{structure}}', 'small', {', '.join(given)})")
  words = ['additive-jax export {run} --structure={structure} --to=small', *arguments]
  if is_own:
    words.append(f'--model={shlex.quote(str(model.get("source", "MODULE:CLASS")))}')
  return Export(' '.join(words))


def _as_keywords(arguments: Iterable[str]):
  for argument in arguments:
    name, _, value = argument.removeprefix('--').partition('=')
    yield f'{name}={value!r}' if value else f'{name}=True'
