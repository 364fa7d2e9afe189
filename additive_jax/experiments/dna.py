"""Distributed neural architectures, with and without steered skips, against dense networks of the
same compute.
"""

from __future__ import annotations

import dataclasses
from typing import Unpack

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from additive_jax.errors import UserError
from additive_jax.experiments import dna_report
from additive_jax.experiments.contenders import (
  DENSE,
  Contender,
  balance_of,
  check_dense,
  compare,
  inspect,
  make_contender,
  router_table,
  summarise,
  train_all,
)
from additive_jax.experiments.dna_tables import Analysis, analyse, module_table, path_table
from additive_jax.experiments.options import check_unsharded
from additive_jax.experiments.results import read_results, run_once, write_results
from additive_jax.experiments.session import Opening, Session
from additive_jax.models.active import active_flops, fitted
from additive_jax.models.dna import DNA, Modules
from additive_jax.parallel import processes

FREE, SKIPPING, SHALLOW = 'dna', 'dna_skipping', 'shallow'
TABLES = ('structures', 'variants', 'routers', 'modules', 'paths')
JOURNAL = 'dna.jsonl'


@dataclasses.dataclass(frozen=True)
class DNAResult:
  """What DNA gave; every part is also a file of the run directory.

  Attributes:
    table: the networks' rows as one structure each, all gates on (`structures.csv`).
    variants: one row per network: scores, active FLOPs, parameters, and what it differs by from the
      dense one (`variants.csv`).
    routers: one row per network and step (`routers.csv`).
    modules: one row per module, of the network that skips if there is one, in the first seed: its
      load and the classes of its tokens (`modules.csv`).
    paths: one row per token of some test examples: its path and compute (`paths.csv`).
    summary: the headline figures (`summary.json`).
  """

  table: pd.DataFrame
  variants: pd.DataFrame
  routers: pd.DataFrame
  modules: pd.DataFrame
  paths: pd.DataFrame
  summary: dict


def run(config: ConfigDict, workdir=None, **opening: Unpack[Opening]) -> DNAResult:
  """Trains DNAs and dense networks of the same compute, or goes on with it, and writes the run
  directory.

  Width, heads, hidden units, positions and units are those of `config.model`, a transformer. The
  dense network has its `num_blocks` layers, and hidden units such that its FLOPs are what the free
  DNA was measured to use; the shallow one has fewer layers, and the FLOPs of the DNA that skips.
  Args and errors are those of `sweep.run`.
  """
  check_unsharded(config)
  return run_once(config, workdir, work=_run, read=_read, check=_check, **opening)


def _check(session):
  """Everything that can be said before any training."""
  options, x = session.config.dna, session.test[0][:1]
  if options.skip and not session.config.balance.bias_rate:
    raise UserError(
      f'config.dna.skip {options.skip} with config.balance.bias_rate 0: expected a rate above 0, '
      'by which the skips are steered'
    )
  if options.skip and check_dense(session).num_layers < 2:
    raise UserError(
      f'config.model.num_blocks {session.model.num_layers}: expected at least 2, since a shallower '
      'network is compared with the DNA that skips'
    )
  dnas = make_dnas(session)
  session.check_experts([dna.model for dna in dnas])
  make_baselines(session, {dna.name: active_flops(dna.model, x) for dna in dnas})


def make_dnas(session: Session) -> list[Contender]:
  """The DNA whose skips are free and, for `config.dna.skip` above 0, the one with that share."""
  like, options = check_dense(session), session.config.dna
  hidden = like.sizes[0]
  if set(like.sizes) != {hidden}:
    raise UserError(f'config.model.hidden {like.sizes} of DNA: expected one number')
  found = []
  for name, skip in ((FREE, 0.0), (SKIPPING, options.skip)):
    if name == SKIPPING and not skip:
      continue
    modules = Modules(
      options.attention,
      options.mlp,
      options.block,
      options.identity,
      options.top_k,
      options.renormalise,
      skip,
      options.rescale_inside,
    )
    model = DNA(
      options.num_steps,
      like.width,
      like.num_heads,
      hidden,
      like.num_classes,
      modules,
      options.num_backbone,
      like.num_tokens,
      like.patch_size,
      like.causal,
      like.positions,
      like.max_tokens,
      like.unit,
    )
    found.append(make_contender(session, name, name, model, balance=balance_of(session)))
  return found


def make_baselines(session: Session, flops: dict[str, float]) -> list[Contender]:
  """Dense networks of the FLOPs of each DNA: `dense`, and `shallow` for the one that skips."""
  layers = session.model.num_layers
  dense = _dense(session, layers, flops[FREE], DENSE)
  found = [make_contender(session, DENSE, DENSE, dense)]
  if SKIPPING in flops:
    share = flops[SKIPPING] / flops[FREE]
    fewer = max(1, min(round(layers * share), dense.num_layers - 1))
    shallow = _dense(session, fewer, flops[SKIPPING], SHALLOW)
    found.append(make_contender(session, SHALLOW, DENSE, shallow))
  return found


def _dense(session, layers, target, name):
  """The dense network of at most that many layers whose hidden units bring it to `target`."""
  x = session.test[0][:1]
  for count in range(layers, 0, -1):
    make = lambda hidden, count=count: session.model.clone(num_layers=count, hidden=hidden)
    try:
      return fitted(make, lambda model: active_flops(model, x), target, f'flops of {name}')
    except UserError:
      if count == 1:
        raise
  return None


def _run(session: Session) -> DNAResult:
  dnas = make_dnas(session)
  records = train_all(session, dnas, JOURNAL)
  flops = {name: float(np.mean([r['flops'] for r in rows])) for name, rows in records.items()}
  dense = make_baselines(session, flops)
  records = train_all(session, dense, JOURNAL) | records
  contenders = [*dense, *dnas]
  variants, routers = compare(contenders, records), router_table(records)
  analyses = {dna.name: _analysis(dna, session.config.seed) for dna in dnas}
  judged = analyses[dnas[-1].name]
  modules, paths = module_table(judged), path_table(judged)
  summary = summarise(session, 'dna', variants, routers)
  for name, found in analyses.items():
    summary['variants'][name]['first_seed'] = found.figures()
  columns = ['variant', 'loss', 'accuracy', 'loss_ci95', 'flops', 'params']
  table = variants[columns].assign(rank=variants['loss'].rank(method='first').astype(int))
  table.insert(0, 'structure', [str(contender.structure) for contender in contenders])
  table = table.sort_values('rank').reset_index(drop=True)
  result = DNAResult(table, variants, routers, modules, paths, summary)
  curves = session.metrics.read(session.rundir.path)
  page = dna_report.page(session, result, contenders, records, analyses, curves)
  tables = dict(zip(TABLES, (table, variants, routers, modules, paths)))
  write_results(session, tables, summary, page)
  return _read(session.rundir)


def _analysis(contender: Contender, seed: int) -> Analysis:
  """What the tokens of some test examples do in the network of one seed."""
  x, y = contender.session.test
  count = contender.session.config.dna.examples
  variables = processes.to_host(contender.trained(seed).variables)
  seen = inspect(contender, variables, (x[:count], y[:count]))
  return analyse(contender.model, seen.chosen, x[:count], y[:count])


def _read(rundir):
  tables, summary = read_results(rundir, TABLES)
  return DNAResult(*tables, summary)
