"""Exp 2: trains the best K structures together in one pool, against the same K trained alone.

The structures come from `config.structures`, from the Exp 1 run directory
`config.structures_from`, or from a short shared sweep.
`run` gives a result with:

  table         structures.csv: a row for each structure, best first, co-trained and alone
  comparison    comparison.csv: the same in long form, with the ensembles
  differences   differences.csv: co-trained minus alone, paired by seed: the mean over the
                structures, each of them, and the ensembles
  cosines       cosines.csv: cosine between gradients of structures at the end, mean over seeds
  stored        stored.csv: of a network with BatchNorms, see `stored.stored_table`
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, PyTree

from additive_jax.errors import UserError, user_path
from additive_jax.experiments.arms import Arm, Trained
from additive_jax.experiments.cost import check_choice
from additive_jax.experiments.cotrain_alone import alone_arms
from additive_jax.experiments.cotrain_members import (
  check_adapters,
  judge_each,
  pool_params,
  pools_of,
  recipe_of,
  start_of,
)
from additive_jax.experiments.cotrain_page import page
from additive_jax.experiments.fit import Curves
from additive_jax.experiments.lone_pools import pool_file, read_pool
from additive_jax.experiments.options import Options, refused
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.shared import (
  check_shared,
  most_networks,
  search_pools,
  shared_arm,
)
from additive_jax.experiments.stored import PREFIX, scores_with_stored, stored_table
from additive_jax.experiments.study import Result, Study
from additive_jax.files.journal import Journal, Record
from additive_jax.files.rundir import RunDir
from additive_jax.gates.networks import all_networks, different, distinct, num_networks
from additive_jax.gates.structure import Structure
from additive_jax.parallel import processes
from additive_jax.report import statistics
from additive_jax.report.comparison import structures_first, with_interval
from additive_jax.report.wording import counted
from additive_jax.run.ensemble import evaluate_ensemble
from additive_jax.train.gradients import cosines
from additive_jax.train.recipe import Recipe
from additive_jax.train.samplers import listed

log = logging.getLogger('additive_jax')

FROM = 'the directory of a finished sweep (Exp 1)'
COSINE_EXAMPLES = 512  # of the training split, on which gradients are compared


def _check(session):
  """Everything about the structures that can be said before any training."""
  session.machine.check_networks([session.model])
  check_adapters(session)
  config, k = session.config, _top_k(session.config)
  if config.structures and config.structures_from:
    raise refused(config, 'structures', 'structures_from', expected='one of the two')
  if k > num_networks(session.space):
    raise refused(config, 'cotrain.top_k', expected=f'at most {most_networks(session.space)}')
  if config.structures:
    structures = different(session.space, config.structures, 'config.structures')
    if k > len(structures):
      raise refused(config, 'cotrain.top_k', expected=f'at most the {len(structures)} listed')
  elif k < 1:
    raise refused(config, 'cotrain.top_k', expected='at least 1')
  elif config.structures_from:
    if not _journal(session).sound():  # once begun, a run keeps its structures
      _from_sweep(session)
  else:
    check_shared(session, config.cotrain.sweep_epochs)
    if not _journal(session).sound():
      check_choice(session)
  session.training.recipe(session.training.steps(config.train.epochs))


def _top_k(config: Options) -> int:
  """Returns K; 0 for all that are listed, also where it is the default, which nobody asked for."""
  default = config.cotrain.top_k == Options().cotrain.top_k
  return 0 if config.structures and default else config.cotrain.top_k


def chosen_structures(session: Session) -> list[Structure]:
  """Returns the K structures, as chosen when the run began: K different networks."""
  journal = _journal(session)
  for line in journal.sound():
    different(session.space, line['structures'], str(journal.path))
    return [session.space.parse(text) for text in line['structures']]
  structures = _choose(session)
  texts = [str(s) for s in structures]
  if processes.is_primary():
    journal.append({'structures': texts})
  renamed = set(session.config.structures) - set(texts)
  if renamed and not _top_k(session.config):
    log.info('%s: named without the gates that have no effect', ' '.join(sorted(renamed)))
  log.info('co-training %s: %s', counted(len(texts), 'structure'), ' '.join(texts))
  return structures


def _journal(session) -> Journal:
  return Journal(session.rundir.journals / 'structures.jsonl')


def _choose(session):
  config, k = session.config, _top_k(session.config)
  if config.structures:
    return different(session.space, config.structures, 'config.structures')[: k or None]
  if config.structures_from:
    return _from_sweep(session)
  arm = shared_arm(session, 'sweep', config.cotrain.sweep_epochs, tag='sweep')
  pool = arm.train(config.seed)
  if config.search.method:
    bits, scores = search_pools(session, lambda: [pool])
    cost = session.task.cost(scores.scores)[0]
  else:
    bits = all_networks(session.space)
    cost = session.task.cost(session.evaluate(pool.variables, bits, session.valid).scores)
  best = np.argsort(statistics.rank(cost))[:k]
  return [Structure(tuple(bits[i])) for i in best]


def _from_sweep(session):
  """The top K of an Exp 1 run directory of a model with the same gates."""
  path = user_path(session.config.structures_from, 'config.structures_from')
  sweep = RunDir(path)
  if not (path / 'summary.json').exists():
    raise refused(session.config, 'structures_from', expected=FROM)
  summary, tables = sweep.read_finished()
  if summary.get('experiment') != 'sweep' or 'structures' not in tables:
    raise refused(session.config, 'structures_from', expected=FROM)
  gates = sweep.read_json('config.json').get('gates')
  if gates != list(session.space.names):
    raise UserError(
      f'config.structures_from {str(path)!r} is of the gates {gates}: '
      f'expected {list(session.space.names)}'
    )
  table = tables['structures']
  if missing := {'structure', 'rank'} - set(table):
    raise UserError(f'{path / "structures.csv"} without {min(missing)}: expected {FROM}')
  table = table.sort_values('rank')
  # An earlier version ranked all structures, of which several may be one network.
  networks, k = distinct(session.space, table['structure']), session.config.cotrain.top_k
  if len(networks) < k:
    most = f'at most the {len(networks)} different networks in {path}'
    raise refused(session.config, 'cotrain.top_k', expected=most)
  return [Structure(tuple(row)) for row in networks[:k]]


def _stages(session: Session, records: Records) -> Iterator[list[Any]]:
  """The structures alone, then all of them together, for as many steps."""
  structures = chosen_structures(session)
  num_steps = session.training.steps(session.config.train.epochs)
  begun = [seed for seed in session.seeds if records.get(POOL, seed) is None]
  yield alone_arms(session, records, structures, num_steps, begun)
  yield [_pool(session, records, structures, num_steps)]


def _pool(session, records, structures, num_steps) -> Arm:
  """The structures trained together, judged beside what each became alone."""
  recipe = recipe_of(session, num_steps, len(structures))
  labels, bits = [str(s) for s in structures], np.array([s.bits for s in structures])

  def probe(trainer) -> dict[str, float]:
    matrix = _cosines(session, recipe, trainer.state.params, bits)
    apart = matrix[~np.eye(len(matrix), dtype=bool)]
    values = {
      f'cosine/{a}~{b}': float(matrix[i, j])
      for i, a in enumerate(labels)
      for j, b in enumerate(labels[:i])
    }
    return {'cosine': float(apart.mean()) if len(apart) else 1.0, **values}

  sampler = listed(structures, session.space.num_gates)
  judge = functools.partial(_judge, records, recipe, structures)
  curves = Curves(labels=labels, probe=probe)
  return Arm(
    POOL,
    session,
    recipe,
    sampler,
    num_steps,
    start=functools.partial(start_of, session, recipe),
    judge=judge,
    curves=curves,
    judged=2 * len(bits),
  )


def _cosines(
  session: Session, recipe: Recipe, params: PyTree, bits: Bool[np.ndarray, 'structures gates']
) -> Float[np.ndarray, 'structures structures']:
  """Gradient cosines on the first examples of the training split, always the same."""
  train = session.data.train
  batch = train[np.arange(min(COSINE_EXAMPLES, len(train)))]
  return np.asarray(_cosines_program(recipe)(processes.to_host(params), bits, *batch))


@functools.lru_cache(maxsize=4)
def _cosines_program(recipe):
  return jax.jit(functools.partial(cosines, recipe))


def _judge(records, recipe, structures, trained: Trained) -> Record:
  """Test scores of each structure and of the ensembles, co-trained and alone."""
  session, seed = trained.session, trained.seed
  bits = np.array([s.bits for s in structures])
  alone = [records.get(str(structure), seed) for structure in structures]
  files = [pool_file(session.rundir, seed, structure) for structure in structures]
  together = pools_of(trained.variables, len(bits))
  lone_pools = [
    {'params': read_pool(file, record['crc32'], together[0]['params'])}
    for file, record in zip(files, alone)
  ]
  matrix = _cosines(session, recipe, trained.variables['params'], bits)

  def ensemble(pools) -> dict[str, float]:
    pools = session.with_own_statistics(pools, bits)
    return evaluate_ensemble(session.model, pools, bits, session.test, session.task)

  return {
    'cotrained': judge_each(bits, trained),
    'alone': {key: [record[key] for record in alone] for key in session.task.scores},
    ENSEMBLE: {
      'cotrained': ensemble(together),
      'alone': ensemble(lone_pools),
    },
    'cosines': matrix.tolist(),
    'skipped': trained.skipped,
  }


POOL, ENSEMBLE, MEAN = 'pool', 'ensemble', 'mean of the structures'
VARIANTS = {'cotrained': '', 'alone': 'alone_'}  # and the prefix of its columns


def _tables(session: Session, records: Records) -> Result:
  """Returns the tables and the summary; in all of them the best structures come first."""
  seeds = records[POOL]
  texts = [name for name in records.arms if name != POOL]
  task, names = session.task, session.task.scores
  scores = {variant: _scores(seeds, variant, names) for variant in VARIANTS}
  chosen = _chosen_by(seeds, f'valid_{task.rank_by}')
  ranks = {task.rank_by: chosen} if chosen is not None else scores['cotrained']
  order = np.argsort(statistics.rank(task.cost(ranks)[: len(texts)]))
  texts = [texts[i] for i in order]
  table, parts = pd.DataFrame({'structure': texts}), []
  for variant, prefix in VARIANTS.items():
    columns = {name: values[[*order, -1]] for name, values in scores[variant].items()}
    parts.append(pd.DataFrame({'label': [*texts, ENSEMBLE], 'variant': variant, **columns}))
    for name, values in columns.items():
      table[f'{prefix}{name}'] = values[:-1]
  both = scores_with_stored(task, [record['cotrained'] for record in seeds])
  for name in (name for name in both if name.startswith(PREFIX)):
    table[name], table[f'{name}_ci95'] = (of[order] for of in statistics.mean_and_ci(both[name]))
  if chosen is not None:
    table[f'valid_{task.rank_by}'] = chosen[order]
  table['flops'], table['params'] = session.space.costs(texts)
  table['rank'] = np.arange(1, len(texts) + 1)
  table = structures_first(table, names)
  comparison = pd.concat(parts, ignore_index=True)
  matrix = np.mean([record['cosines'] for record in seeds], axis=0)[np.ix_(order, order)]
  cosines = pd.DataFrame(matrix, columns=texts)
  cosines.insert(0, 'structure', texts)
  summary = _summary(session, table, comparison, matrix, seeds, records.arms[POOL].num_steps)
  tables = {'structures': table, 'comparison': comparison, 'cosines': cosines}
  tables |= {'differences': _differences(seeds, texts, order, names)}
  return Result(tables | stored_table(task, {POOL: both}), summary)


def _chosen_by(seeds, score) -> Float[np.ndarray, ' structures'] | None:
  """The mean scores on the validation split that rank the structures; None where nothing was held
  out."""
  if any(score not in record['cotrained'] for record in seeds):
    return None
  return statistics.mean_and_ci([record['cotrained'][score] for record in seeds])[0]


def _differences(seeds, texts, order, scores) -> pd.DataFrame:
  """Co-trained minus alone, paired by seed; below zero is a lower loss together."""
  columns: dict[str, Any] = {'label': [MEAN, *texts, ENSEMBLE]}
  for key in scores:
    together, alone = (np.array([r[variant][key] for r in seeds])[:, order] for variant in VARIANTS)
    apart = together - alone
    of_ensembles = [r[ENSEMBLE]['cotrained'][key] - r[ENSEMBLE]['alone'][key] for r in seeds]
    by_seed = np.column_stack([apart.mean(1), apart, of_ensembles])
    columns[key], columns[f'{key}_ci95'] = statistics.mean_and_ci(by_seed)
  return pd.DataFrame(columns)


def _scores(seeds, variant, scores):
  """Mean and interval of each score, [K+1]: the structures as they were trained, the ensemble."""
  columns = {}
  for key in scores:
    alone = np.array([record[variant][key] for record in seeds])
    together = np.array([[record[ENSEMBLE][variant][key]] for record in seeds])
    mean, half_width = statistics.mean_and_ci(np.concatenate([alone, together], axis=1))
    columns |= {key: mean, f'{key}_ci95': half_width}
  return columns


def _summary(session, table, comparison, matrix, seeds, num_steps) -> dict[str, Any]:
  together, alone = ([np.mean(r[variant]['loss']) for r in seeds] for variant in VARIANTS)
  ensembles = comparison[comparison['label'] == ENSEMBLE].set_index('variant')
  scores = session.task.scores
  apart = matrix[~np.eye(len(matrix), dtype=bool)]
  # A backward pass costs about twice a forward pass.
  examples = num_steps * session.config.train.batch_size
  return dict(
    structures=table['structure'].tolist(),
    num_gates=session.space.num_gates,
    best_structure=table['structure'][0],
    **{f'{p}{key}': table[f'{p}{key}'].mean() for p in VARIANTS.values() for key in scores},
    **with_interval('cotrained_minus_alone_loss', np.array(together) - np.array(alone)),
    **{f'{p}ensemble_{key}': ensembles[key][v] for v, p in VARIANTS.items() for key in scores},
    mean_cosine=apart.mean() if len(apart) else None,
    training_flops_of_each_side=3 * examples * table['flops'].sum(),
    pool_params=pool_params(session, len(table)),
    alone_params=int(table['params'].sum()),
    skipped=sum(record['skipped'] for record in seeds),
  )


STUDY = Study('cotrain', _stages, check=_check, tables=_tables, page=page)

run = STUDY.run
