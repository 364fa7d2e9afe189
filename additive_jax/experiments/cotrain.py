"""Exp 2: trains the best K structures together in one pool, against the same K trained alone."""

from __future__ import annotations

import dataclasses
import functools
import logging
import zlib
from pathlib import Path
from typing import Unpack

import flax.serialization
import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from additive_jax.errors import UserError
from additive_jax.experiments import cotrain_report
from additive_jax.experiments.cotrain_tables import ENSEMBLE, make_tables
from additive_jax.experiments.ensemble import ensemble
from additive_jax.experiments.fit import fit
from additive_jax.experiments.options import check_unsharded
from additive_jax.experiments.results import read_results, run_once, write_results
from additive_jax.experiments.session import Opening, Session
from additive_jax.experiments.shared import check_shared, evaluate_pool, search_pools, train_shared
from additive_jax.files.journal import Journal, read_all, replace_file
from additive_jax.files.progress import Progress
from additive_jax.files.rundir import RunDir
from additive_jax.gates.structure import Structure, all_bits
from additive_jax.parallel import processes
from additive_jax.report import analysis
from additive_jax.report.wording import counted
from additive_jax.train.gradients import cosines
from additive_jax.train.samplers import listed

log = logging.getLogger('additive_jax')

TABLES = ('structures', 'comparison', 'cosines')
COSINE_EXAMPLES = 512  # of the training split, on which gradients are compared


@dataclasses.dataclass(frozen=True)
class CotrainResult:
  """What co-training gave; every part is also a file of the run directory.

  Attributes:
    table: one row per structure, best first, co-trained and alone (`structures.csv`).
    comparison: long form of the table with the ensembles: label, variant, loss, accuracy and
      intervals (`comparison.csv`).
    cosines: cosine between the structures' gradients at the end, mean over seeds, [K, K]
      (`cosines.csv`).
    summary: the headline figures (`summary.json`).
  """

  table: pd.DataFrame
  comparison: pd.DataFrame
  cosines: pd.DataFrame
  summary: dict


def run(config: ConfigDict, workdir=None, **opening: Unpack[Opening]) -> CotrainResult:
  """Runs Exp 2, or goes on with it, and writes its run directory.

  Args and errors are those of `sweep.run`; the structures come from `config.structures`, from the
  Exp 1 run directory `config.structures_from`, or from a short shared sweep.
  """
  if config.structures and config.structures_from:
    raise UserError(
      f'config.structures {tuple(config.structures)} and config.structures_from '
      f'{config.structures_from!r}: expected one of the two'
    )
  check_unsharded(config)
  return run_once(config, workdir, work=_run, read=_read, check=_check, **opening)


def _check(session):
  """Everything about the structures that can be said before any training."""
  session.check_experts([session.model])
  config, num_gates = session.config, session.space.num_gates
  k = config.cotrain.top_k
  if k > 2**num_gates:
    raise UserError(
      f'config.cotrain.top_k {k}: expected at most 2^{num_gates} = {2**num_gates} structures'
    )
  if config.structures:
    given = [session.space.parse(text) for text in config.structures]
    if len(set(given)) < len(given):
      twice = next(s for s in given if given.count(s) > 1)
      raise UserError(f'structure {twice} occurs twice in config.structures: expected each once')
    if k > len(given):
      raise UserError(f'config.cotrain.top_k {k}: expected at most the {len(given)} listed')
  elif k < 1:
    raise UserError(f'config.cotrain.top_k {k}: expected at least 1')
  elif config.structures_from:
    _from_sweep(session)
  else:
    check_shared(session, config.cotrain.sweep_epochs)
  session.recipe(session.steps(config.train.epochs))
  session.check_in_memory()


def _run(session: Session) -> CotrainResult:
  structures = _structures(session)
  texts = [str(s) for s in structures]
  log.info('co-training %s: %s', counted(len(texts), 'structure'), ' '.join(texts))
  num_steps = session.steps(session.config.train.epochs)
  recipe = session.recipe(num_steps)
  done = {record['seed']: record for record in read_all(session.rundir.journals, 'cotrain.jsonl')}
  for seed in session.seeds:
    if seed in done:
      continue
    pool = _train_pool(session, recipe, structures, seed, num_steps)
    alone = _train_alone(session, recipe, structures, seed, num_steps)
    record = {'seed': seed, **_judge(session, pool, alone, structures)}
    record['cosines'] = _cosines(session, recipe, pool.state.params, structures).tolist()
    record['skipped'] = int(processes.to_host(pool.state.skipped))
    if processes.is_primary():
      Journal(session.rundir.journals / 'cotrain.jsonl').append(record)
    done[seed] = record
  records = [done[seed] for seed in session.seeds]
  result = CotrainResult(*make_tables(session, texts, records, num_steps))
  page = cotrain_report.page(session, result, session.metrics.read(session.rundir.path))
  tables = dict(zip(TABLES, (result.table, result.comparison, result.cosines)))
  write_results(session, tables, result.summary, page)
  return _read(session.rundir)


def _structures(session: Session) -> list[Structure]:
  """The K structures, as chosen when the run began."""
  journal = Journal(session.rundir.journals / 'structures.jsonl')
  for record in journal.records():
    return [session.space.parse(text) for text in record['structures']]
  structures = _choose(session)
  if processes.is_primary():
    journal.append({'structures': [str(s) for s in structures]})
  return structures


def _choose(session):
  config, k = session.config, session.config.cotrain.top_k
  if config.structures:
    return [session.space.parse(text) for text in config.structures][: k or None]
  if config.structures_from:
    return _from_sweep(session)
  trainer = train_shared(session, config.seed, config.cotrain.sweep_epochs, 'sweep')
  if config.search.method:
    bits, found = search_pools(session, [trainer])
    loss = found.loss[0]
  else:
    bits = all_bits(session.space.num_gates)
    loss = evaluate_pool(session, trainer, bits).loss
  best = np.argsort(analysis.rank(loss))[:k]
  return [Structure(tuple(bits[i])) for i in best]


def _from_sweep(session):
  """The top K of an Exp 1 run directory of a model with the same gates."""
  path = Path(session.config.structures_from)
  sweep = RunDir(path)
  if not sweep.finished or sweep.read_json('summary.json').get('experiment') != 'sweep':
    raise UserError(
      f'config.structures_from {str(path)!r}: expected the directory of a finished sweep (Exp 1)'
    )
  gates = sweep.read_json('config.json').get('gates')
  if gates != list(session.space.names):
    raise UserError(
      f'config.structures_from {str(path)!r} is of the gates {gates}: '
      f'expected {list(session.space.names)}'
    )
  table = sweep.read_table('structures.csv').sort_values('rank')
  k = session.config.cotrain.top_k
  if len(table) < k:
    raise UserError(f'config.cotrain.top_k {k}: expected at most the {len(table)} in {path}')
  return [session.space.parse(text) for text in table['structure'][:k]]


def _train_pool(session, recipe, structures, seed, num_steps):
  trainer = session.trainer(recipe, listed(structures, session.space.num_gates), seed)

  def probe(trainer):
    matrix = _cosines(session, recipe, trainer.state.params, structures)
    apart = matrix[~np.eye(len(matrix), dtype=bool)]
    labels = [str(s) for s in structures]
    values = {
      f'cosine/{a}~{b}': float(matrix[i, j])
      for i, a in enumerate(labels)
      for j, b in enumerate(labels[:i])
    }
    return {'cosine': float(apart.mean()) if len(apart) else 1.0, **values}

  labels = [str(s) for s in structures]
  fit(session, trainer, num_steps, f'pool-seed{seed}', labels=labels, probe=probe)
  return trainer


def _cosines(session, recipe, params, structures):
  """Gradient cosines [K, K] on the first examples of the training split, always the same."""
  train = session.data.train
  batch = train[np.arange(min(COSINE_EXAMPLES, len(train)))]
  bits = np.array([s.bits for s in structures])
  return np.asarray(_cosines_program(recipe)(processes.to_host(params), bits, *batch))


@functools.lru_cache(maxsize=4)
def _cosines_program(recipe):
  return jax.jit(functools.partial(cosines, recipe))


def _train_alone(session, recipe, structures, seed, num_steps):
  """The same structures trained alone, for the same steps: [K] pools, and a record of each.

  Processes share the structures out and meet in the run directory.
  """
  rank, size = processes.process()
  journal = Journal(session.rundir.journals / f'alone-{rank}-of-{size}.jsonl')
  population = session.population(recipe, seed)
  done = _alone_records(session, seed)
  todo = [s for s in structures[rank::size] if str(s) not in done]
  bar = Progress(
    len(structures), f'alone-seed{seed}', unit='structure', start=len(structures) - len(todo)
  )
  with bar as progress:
    for member in population.train(todo, num_steps):
      name = str(member.structure)
      content = flax.serialization.to_bytes(processes.to_host(member.state.params))
      path = session.rundir.checkpoints / f'alone-seed{seed}' / f'{name}.msgpack'
      path.parent.mkdir(exist_ok=True)
      replace_file(path, content)
      scores = {'loss': member.loss, 'accuracy': member.accuracy, 'skipped': member.skipped}
      journal.append({'seed': seed, 'structure': name, 'crc32': zlib.crc32(content), **scores})
      progress.advance(1, loss=member.loss)
      if session.stopper.stop_requested:
        break
  processes.barrier(f'alone-seed{seed}')
  session.check_stop()
  done = _alone_records(session, seed)
  template, pools = population.variables['params'], []
  for structure in structures:
    path = session.rundir.checkpoints / f'alone-seed{seed}' / f'{structure}.msgpack'
    content = path.read_bytes() if path.exists() else b''
    if zlib.crc32(content) != done[str(structure)]['crc32']:
      raise UserError(f'{path} is damaged or missing: remove {session.rundir.path} to start afresh')
    pools.append({'params': flax.serialization.from_bytes(template, content)})
  return pools, [done[str(structure)] for structure in structures]


def _alone_records(session, seed):
  records = read_all(session.rundir.journals, 'alone-*.jsonl')
  return {record['structure']: record for record in records if record['seed'] == seed}


def _judge(session, pool, alone, structures):
  """Test scores of each structure and of the ensembles, co-trained and alone."""
  bits = np.array([s.bits for s in structures])
  together = evaluate_pool(session, pool, bits)
  variables = processes.to_host(pool.variables)
  pools, records = alone
  ensembles = {
    'cotrained': ensemble(session.model, [variables] * len(bits), bits, session.test, session.data),
    'alone': ensemble(session.model, pools, bits, session.test, session.data),
  }
  return {
    'cotrained': {'loss': together.loss.tolist(), 'accuracy': together.accuracy.tolist()},
    'alone': {key: [record[key] for record in records] for key in ('loss', 'accuracy')},
    ENSEMBLE: {name: dict(zip(('loss', 'accuracy'), scores)) for name, scores in ensembles.items()},
  }


def _read(rundir):
  tables, summary = read_results(rundir, TABLES)
  return CotrainResult(*tables, summary)
