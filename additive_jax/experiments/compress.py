"""Compression: what a trained network can do without, found by sparse variational dropout and by
magnitude, and cut out.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Unpack

import pandas as pd
from ml_collections import ConfigDict

from additive_jax.errors import UserError
from additive_jax.experiments import compress_report, compress_tables
from additive_jax.experiments.compressor import Compressor
from additive_jax.experiments.options import check_unsharded
from additive_jax.experiments.results import read_results, run_once, write_results
from additive_jax.experiments.session import Opening, Session
from additive_jax.files.journal import Journal, read_all
from additive_jax.parallel import processes

TABLES = ('variants', 'structures', 'layers')
JOURNAL = 'compress.jsonl'


@dataclasses.dataclass(frozen=True)
class CompressResult:
  """What a compression gave; every part is also a file of the run directory.

  Attributes:
    variants: one row per network, means over the seeds (`variants.csv`).
    structures: one row per network and seed: its gates, what is left of it (`structures.csv`).
    layers: one row per network and layer, means over the seeds (`layers.csv`).
    summary: the headline figures (`summary.json`).
  """

  variants: pd.DataFrame
  structures: pd.DataFrame
  layers: pd.DataFrame
  summary: dict


def run(config: ConfigDict, workdir=None, **opening: Unpack[Opening]) -> CompressResult:
  """Compresses `config.model` as `config.compress` says, or goes on with it, and writes the run
  directory. Args and errors are those of `sweep.run`.

  For each seed: a network is trained for `train.epochs`; all others start from it and take as many
  epochs more. One stays dense; one learns its noise for `compress.epochs`, loses what has too much
  of it, and is tuned for `compress.tune_epochs`; the others lose what is small, at once, and are
  tuned all the time. With `compress.distill` these learn from
  a teacher as well, which took `compress.teacher_epochs` more. What
  variational dropout leaves is cut out and written to `exported/`, see `exported.export`.
  """
  check_unsharded(config)
  return run_once(config, workdir, work=_run, read=_read, check=_check, **opening)


def _check(session):
  """Everything that can be said before any training."""
  options = session.config.compress
  sparsities = options.sparsities
  if options.distill and session.data.task == 'regression':
    raise UserError(
      f'config.compress.distill {options.distill} in a regression: expected 0, for want of classes'
    )
  if session.config.train.distill:
    raise UserError(
      f'config.train.distill {session.config.train.distill} in a compression: expected 0; '
      'config.compress.distill has a teacher of its own'
    )
  session.check_in_memory()
  compressor = Compressor.of(session)
  counts = {share: compressor.share(share) for share in sparsities}
  for first, second in itertools.combinations(sparsities, 2):
    if counts[first] == counts[second]:
      raise UserError(
        f'config.compress.sparsities {sparsities}: expected shares that leave different numbers, '
        f'{first} and {second} leave as many per {options.level}'
      )


def _run(session: Session) -> CompressResult:
  folder = session.rundir.journals
  done = {(r['seed'], r['variant']): r for r in read_all(folder, JOURNAL)}
  compressor = Compressor.of(session)
  for seed in session.seeds:
    if any((seed, name) not in done for name in compressor.names):
      for record in compressor.compress(seed, {n: r for (s, n), r in done.items() if s == seed}):
        done[seed, record['variant']] = record
        if processes.is_primary():
          Journal(folder / JOURNAL).append(record)
  records = {name: [done[seed, name] for seed in session.seeds] for name in compressor.names}
  variants = compress_tables.variants(records)
  structures, layers = compress_tables.structures(records), compress_tables.layers(records)
  summary = compress_tables.summarise(session, variants)
  result = CompressResult(variants, structures, layers, summary)
  curves = session.metrics.read(session.rundir.path)
  page = compress_report.page(session, result, records, curves)
  tables = dict(zip(TABLES, (variants, structures, layers)))
  write_results(session, tables, summary, page)
  return _read(session.rundir)


def _read(rundir):
  tables, summary = read_results(rundir, TABLES)
  return CompressResult(*tables, summary)
