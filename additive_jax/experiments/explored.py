"""The explorer of a run's page: which table of a run it shows, how its structures were judged, and
how they are exported.

Every experiment with a table of structures has one, of two structures or more; a study of one's own
too.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from additive_jax.data import KINDS
from additive_jax.experiments.explored_table import (
  FITTED_MEAN,
  MEAN,
  Known,
  Way,
  bits_of_texts,
  of_table,
)
from additive_jax.experiments.network import NETWORKS
from additive_jax.experiments.session import Session
from additive_jax.files.journal import Journal
from additive_jax.gates.networks import canonical, num_networks
from additive_jax.gates.structure import Space, Structure
from additive_jax.models.additive import sites_of
from additive_jax.report.explorer import Export, explorer
from additive_jax.report.page import Piece
from additive_jax.report.wording import plain
from additive_jax.run.latency import Latency
from additive_jax.run.tasks import LOSS

LATENCIES = 'latency.json'  # of a pruning under a budget of latency
OFF_ALONE = 'against it alone off'
ALONE = (
  'Networks that were trained alone are not kept by this run: a new one keeps them, with '
  '--config.sweep.keep_alone=true and another --workdir.'
)
SPLIT = 'Export from the half that the structure is in, --checkpoint=shared-seedN-off or -on.'


def explored(session: Session, result: Any) -> Piece | None:
  """Returns the explorer of a run; None where it judged fewer than two structures of its space.

  Args:
    result: the tables of the run, a `study.Result`. Where its structures are those of another
      session's network, `extras['explored']` is that session.
  """
  table, ways = structures_of(session, result)
  other = result.extras.get('explored', session)
  if table is None or (table := of_space(other.space, table)) is None:
    return None
  shown = of_table(
    other.space,
    table,
    ways,
    session.task,
    sites=[(site.label, len(site.names)) for site in sites_of(other.model)],
    latency=_latency(session),
    known=_effects_of(session, result),
  )
  if session.config.experiment == 'prune':
    cost = session.config.prune.cost
    shown = dataclasses.replace(shown, cost='seconds' if cost == 'latency' else cost)
  return explorer(shown)


def of_space(space: Space, table: pd.DataFrame) -> pd.DataFrame | None:
  """Returns the rows of structures of a space: of those that compare networks of several sizes,
  the ones that cost what the space says. None for fewer than two structures, or without costs."""
  if space.fixed_flops is None:
    return None
  table = table[table['structure'].str.len() == len(space)]
  if {'structure', 'flops', 'params'} <= set(table) and len(table):
    flops, params = space.costs(bits_of_texts(table['structure'], len(space)))
    known = table['flops'].isna() | np.isclose(table['flops'], flops, rtol=1e-3)
    table = table[known & (table['params'].isna() | np.isclose(table['params'], params, rtol=1e-3))]
  return table if table['structure'].nunique() > 1 else None


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
    return _of_prune(session, result)
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
  pool = exporting(session) if not session.config.sweep.split_after else Export(reason=SPLIT)
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


def _of_prune(session: Session, result: Any) -> tuple[pd.DataFrame, list[Way]]:
  """The candidates; all-on, and it without each gate, which are judged on the same split; and what
  the searches evaluated: of the whole split the same loss, of calibration examples another."""
  options, seed = session.config.prune, session.config.seed
  path = session.rundir.journals / 'search-0.jsonl'
  lines = [line for line in Journal(path).sound()[1:] if line['share'] == 1.0]
  known = pd.DataFrame(
    {
      'structure': [text for line in lines for text in line['structures']],
      'searched_loss': [loss for line in lines for loss in line['loss']],
    }
  )
  table = result.tables['candidates'].merge(
    known.drop_duplicates('structure'), how='outer', on='structure'
  )
  is_loss = session.task.rank_by == LOSS
  whole = not options.calibration_examples and is_loss
  if is_loss:
    table = table.merge(_around_all_on(session, result), how='outer', on='structure')
    table[LOSS] = table[LOSS].fillna(table.pop('around'))
  if whole:
    table[LOSS] = table[LOSS].fillna(table['searched_loss'])
  table = table.replace(np.inf, np.nan)
  table = table.sort_values(['rank', LOSS, 'searched_loss'], kind='stable', ignore_index=True)
  split = session.chosen_word
  pool, healed = (_from_checkpoint(session, f'{name}-seed{seed}') for name in ('pool', 'healed'))
  ways = [Way('in the pool, before healing', '', split, export=pool)]
  ways.append(Way('healed', 'healed_', also=(('healed_valid_', 'validation'),), export=healed))
  if not whole and is_loss:
    label = f'before healing, by {options.calibration_examples:,} examples of the search'
    # By far the most structures, so that others can be predicted.
    ways.insert(0, Way(label, 'searched_', 'calibration', export=pool))
  return table, ways


def _from_checkpoint(session: Session, name: str) -> Export:
  if not (session.rundir.checkpoints / name).exists():
    return Export(reason='The chosen structure is in RUN/exported.')
  return exporting(session, f'--checkpoint={name}')


def _around_all_on(session: Session, result: Any) -> pd.DataFrame:
  """The losses of all-on, and of it without each gate, on the split to choose by."""
  networks, gates = result.tables['networks'], result.tables['gates']
  column = LOSS if session.data.valid is None else f'valid_{LOSS}'
  full = float(networks.loc[networks['network'] == 'before', column].iloc[0])
  n = session.space.num_gates
  bits = ~np.eye(n + 1, n, -1, dtype=bool)
  losses = full + np.array([0.0, *gates['alone']])
  texts = [str(Structure(tuple(row))) for row in canonical(session.space, bits).tolist()]
  frame = pd.DataFrame({'structure': texts, 'around': losses})
  return frame.drop_duplicates('structure')


def _effects_of(session: Session, result: Any) -> Known | None:
  """What gates do, where a sweep or a pruning has found it."""
  experiment, tables = session.config.experiment, result.tables
  if experiment == 'prune' and session.task.rank_by == LOSS:
    return Known('', -tables['gates']['alone'].to_numpy(float), meaning=OFF_ALONE)
  if experiment != 'sweep':
    return None
  frame, modes = tables['effects'], session.config.sweep.modes
  searched = len(tables['structures']) < num_networks(session.space)
  prefix = 'shared_' if searched and 'standalone' in modes else ''
  meaning = FITTED_MEAN if searched else MEAN
  return Known(prefix, frame['effect'].to_numpy(float), frame['ci95'].to_numpy(float), meaning)


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
