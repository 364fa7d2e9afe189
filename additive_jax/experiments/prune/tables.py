"""The tables of a pruning, and the smaller network as files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import PyTree

from additive_jax.compress import cutting
from additive_jax.compress.exported import CODING, export
from additive_jax.data import Data
from additive_jax.experiments.prune import searching
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.stored import stored_table
from additive_jax.experiments.study import Result
from additive_jax.files.journal import Record
from additive_jax.gates.structure import StructureLike
from additive_jax.parallel import processes
from additive_jax.report.statistics import mean_and_ci, rank
from additive_jax.run.recalibration import recalibrate
from additive_jax.transplant.restore import Checkpoints

POOL, HEALED, ALONE = 'pool', 'healed', 'healed_alone'
EXPORTED = 'exported'  # folder of the run directory
RECEIPT = 64  # examples that the receipt is of
SHOWN = ('before', 'unhealed', 'after')


def tables(session: Session, records: Records) -> Result:
  """Returns the candidates, the full network beside the chosen one, how it was found, and the
  summary; and writes the chosen one as files."""
  (record,), line = records[HEALED], searching.choose(session, {})
  networks = _networks(session, records, record)
  candidates = _candidates(session, line, record)
  methods = _methods(session, line)
  summary: dict[str, Any] = {'structure': record['structure'], 'chosen_on': line['split']}
  summary |= {str(row.pop('network')): row for row in networks.to_dict('records')}
  options = session.config.prune
  summary |= {'budget': options.budget, 'cost': options.cost, 'limit': line['limit']}
  method = searching.method_of(session)
  taken = [row['evaluations'] for row in line['methods'] if row['method'] == method]
  summary |= {'method': method, 'fit': line['fit'], 'evaluations': max(taken, default=0)}
  summary['workdir'] = str(session.rundir.path.absolute())
  summary['exported'] = str(_exported(session, record, {k: summary[k] for k in SHOWN}))
  if session.pretrained is not None:
    summary |= _written(Path(summary['exported']))
  before = None if session.pretrained is None else session.pretrained.path
  summary['bytes'] = {
    'before': record['bytes'] if before is None else _size(before),
    'after': _size(Path(summary['exported'])),
  }
  if 'tokens' in record:
    seconds = record['seconds'].items()
    summary['tokens_per_second'] = {name: record['tokens'] / time for name, time in seconds}
  frames = {
    'candidates': candidates,
    'networks': networks,
    'methods': methods,
    'paths': pd.DataFrame(line['paths']),
    'gates': pd.DataFrame(line['gates']),
  }
  if record['samples']:
    frames['samples'] = pd.DataFrame(record['samples'])
  both = {POOL: {str(name): [values] for name, values in candidates.items()}}
  return Result(frames | stored_table(session.task, both), summary)


def _networks(session: Session, records: Records, record: Record) -> pd.DataFrame:
  """A row for each network: the full one, the chosen structure in its pool, and healed."""
  space, names = session.space, list(record['before'])
  rows: list[dict[str, Any]] = []
  after = {name: record[name] for name in names}
  full, chosen = str(space.all_on()), record['structure']
  known = [('before', full, record['before']), ('unhealed', chosen, record['unhealed'])]
  known.append(('after', chosen, after))
  if ALONE in records.arms:
    (alone,) = records[ALONE]
    known.append(('alone', alone['structure'], {name: alone[name] for name in names}))
  seconds = record['seconds']
  for name, text, values in known:
    structure = space.parse(text)
    costs = {'flops': space.flops(structure), 'params': space.params(structure)}
    if name != 'alone' or text == chosen:
      costs['seconds'] = seconds['before' if name == 'before' else 'after']
    rows.append({'network': name, 'structure': text, **values, **costs})
  return pd.DataFrame(rows)


def _candidates(session: Session, line: Record, record: Record) -> pd.DataFrame:
  """The structures within the budget that were ranked, and what healing made of the first ones."""
  frame, scores = pd.DataFrame(line['best']), record['scores']
  for name, values in scores.items():
    of = dict(zip(record['structures'], values))
    if not name.startswith('stored_'):
      frame[f'healed_{name}'] = frame['structure'].map(of)
  chosen = session.task.rank_by
  known = scores.get(f'valid_{chosen}', scores[chosen])
  places = dict(zip(record['structures'], rank(session.task.cost({chosen: np.array(known)}))))
  frame['healed_rank'] = frame['structure'].map(places)
  return frame


def _methods(session: Session, line: Record) -> pd.DataFrame:
  """A row for each method and level: means over the calibration sets. Where all sets have the same
  structures at several levels it is one row, with all these budgets."""
  kind, rows = session.config.prune.cost, []
  frame = pd.DataFrame(line['methods'])
  scores = [s for s in map(str, frame) if s.removeprefix('valid_') in session.task.scores]
  found: dict[Any, list[pd.DataFrame]] = {}
  for (method, _), part in frame.groupby(['method', 'level'], sort=False):
    found.setdefault((method, *part['set'], *part['structure']), []).append(part)
  for (method, *_), parts in found.items():
    part, mosts = parts[-1], [float(level['most'].iloc[0]) for level in parts]
    row: dict[str, Any] = {'method': method, 'most': mosts[-1]}
    row['budgets'] = ', '.join(f'{most / line["full"]:.3g}' for most in mosts)
    row |= {kind: part[kind].mean(), 'removed': 1 - part[kind].mean() / line['full']}
    for name in scores:
      mean, half_width = mean_and_ci(part[name].to_numpy()[:, None])
      row |= {name: mean[0], f'{name}_ci95': half_width[0]}
    rows.append(row | {'evaluations': part['evaluations'].mean(), 'sets': len(part)})
  return pd.DataFrame(rows)


def healed_pool(
  checkpoints: Path, model: Any, data: Data, seed: int, structure: StructureLike, given: Any
) -> PyTree:
  """Returns the pool after healing, from its checkpoint, or as it was where nothing was healed,
  with the statistics of the structure.

  Args:
    checkpoints: those of the run.
    given: the pool `{'params': …}` that the run was given, or None.
  """
  x = receipt_input(data)
  for name in (HEALED, POOL):
    if (folder := checkpoints / f'{name}-seed{seed}').exists():
      given = Checkpoints(folder, model).read(x).variables
      break
  (own,) = recalibrate(model, given, [structure], data.train)
  return own


def receipt_input(data: Data) -> PyTree:
  """Returns the inputs that receipts are of."""
  return data.test[np.arange(min(RECEIPT, len(data.test)))][0]


def coded(coding: Any) -> dict[str, Any]:
  """Returns what an export says of how a table became inputs, where it was one."""
  return {} if coding is None else {CODING: coding.described()}


def _exported(session: Session, record: Record, scores: dict[str, Any]) -> Path:
  """Writes the chosen structure to the run directory: as a network that stands alone, or where it
  was pretrained as others have it."""
  folder, structure = session.rundir.path / EXPORTED, record['structure']
  if processes.is_primary():
    model, data = session.model, session.data
    given = None if session.start is None else {'params': session.start}
    options = (session.config.seed, structure, given)
    variables = healed_pool(session.rundir.checkpoints, model, data, *options)
    if session.pretrained is not None:
      from additive_jax.pretrained.exporting import export as export_pretrained

      export_pretrained(
        session.pretrained,
        structure,
        folder,
        variables,
        overwrite=True,
        dtype=session.config.prune.dtype or None,
      )
    else:
      x = receipt_input(data)
      cut = cutting.cut(model, variables, structure, x=x)
      receipt = cutting.receipt(cut, model, variables, x)
      notes = {'receipt': dataclasses.asdict(receipt), 'scores': scores}
      export(cut, folder, notes=notes | coded(data.coding), overwrite=True)
  processes.barrier('exported')
  return folder


def _size(path: Path) -> int:
  """Returns the bytes of a network's file, or of those in a directory."""
  files = path.rglob('*.safetensors') if path.is_dir() else [path]
  return sum(file.stat().st_size for file in files)


def _written(folder: Path) -> dict[str, Any]:
  """Returns how many parameters the files of an exported pretrained network hold, and in which
  dtype."""
  from additive_jax.pretrained.exporting import RECEIPT as NAME

  receipt = json.loads((folder / NAME).read_text())
  return {'written': int(receipt['written']), 'dtype': receipt['dtype']}
