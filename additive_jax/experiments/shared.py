"""One pool trained on random structures, and the structures ranked in it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from additive_jax.experiments.arms import Trained
from additive_jax.experiments.fit import fit
from additive_jax.experiments.options import selected
from additive_jax.experiments.scores import evaluate
from additive_jax.experiments.session import Session
from additive_jax.files.journal import Journal, read_all
from additive_jax.files.progress import Progress
from additive_jax.gates.structure import Structure, all_bits, bits_of
from additive_jax.parallel import processes
from additive_jax.run.evaluate import Evaluation
from additive_jax.search import Evaluated, Search

SCORES = ('loss', 'accuracy')


def train_shared(session: Session, seed: int, epochs: float, name: str) -> Trained:
  """Returns a pool trained on the structures of `config.sampler`, for `epochs` passes of each
  slot; `name` is that of its curves and checkpoints."""
  num_steps = session.steps(epochs)
  trainer = session.trainer(session.recipe(num_steps), session.sampler(num_steps), seed)
  fit(session, trainer, num_steps, name)
  return Trained(session, seed, trainer, processes.to_host(trainer.variables))


def rank_shared(session: Session, bits: np.ndarray, shard: int, num_shards: int):
  """Loss and accuracy [seeds, S] of structures [S, n] in one pool per seed; journalled by seed.

  Returns:
    An `Evaluation`, or None for one shard of several: shard i takes every num_shards-th seed.
  """
  epochs = shared_epochs(session)
  folder = session.rundir.journals
  done = {record['seed']: record for record in read_all(folder, 'shared-*.jsonl')}
  for i, seed in enumerate(session.seeds):
    if seed not in done and i % num_shards == shard:
      pool = train_shared(session, seed, epochs, f'shared-seed{seed}')
      found = evaluate(session, pool.variables, bits)
      done[seed] = {'seed': seed, 'loss': found.loss.tolist(), 'accuracy': found.accuracy.tolist()}
      if processes.is_primary():
        Journal(folder / f'shared-{shard}-of-{num_shards}.jsonl').append(done[seed])
  if num_shards > 1:
    return None
  rows = [done[seed] for seed in session.seeds]
  return Evaluation(*(np.array([row[key] for row in rows]) for key in ('loss', 'accuracy')))


def search_shared(session: Session) -> tuple[np.ndarray, Evaluation]:
  """Trains a pool per seed and searches them as `search_pools` does."""
  epochs = shared_epochs(session)
  pools = [train_shared(session, seed, epochs, f'shared-seed{seed}') for seed in session.seeds]
  return search_pools(session, lambda: pools)


def search_pools(
  session: Session, make_pools: Callable[[], list[Trained]]
) -> tuple[np.ndarray, Evaluation]:
  """Searches pools for the structures of lowest mean loss, as `config.search` says.

  Each generation is journalled, so that a search goes on after the last one that was evaluated.

  Args:
    session: the run.
    make_pools: gives the pools; called once, and not for a search that is done.

  Returns:
    What was evaluated, bool [S, n], and loss and accuracy [pools, S].
  """
  options, num_gates = session.config.search, session.space.num_gates
  journal = Journal(session.rundir.journals / 'search.jsonl')
  records = journal.records()
  texts = _joined(records, 'structures')
  bar = Progress(
    options.budget,
    'search',
    unit='structure',
    start=len(texts),
    enabled=processes.is_primary(),
  )

  pools = functools.cache(make_pools)

  def evaluate_all(bits):
    session.check_stop()
    found = [evaluate(session, pool.variables, bits) for pool in pools()]
    # The last generation may be filled up with what is not asked for.
    fresh = min(len(bits), options.budget - progress.completed)
    record = {'structures': [str(Structure(tuple(row))) for row in bits[:fresh]]}
    for key in SCORES:
      record[key] = np.array([getattr(one, key)[:fresh] for one in found]).T.tolist()
    if processes.is_primary():
      journal.append(record)
    records.append(record)
    loss = _means(records, 'loss')
    progress.advance(fresh, loss=loss.min(where=np.isfinite(loss), initial=np.inf))
    return Evaluation(*(_means([record], key) for key in SCORES))

  with bar as progress:
    known = Evaluated(bits_of(texts, num_gates), *(_means(records, key) for key in SCORES))
    found = selected(Search, options, seed=session.config.seed).run(evaluate_all, num_gates, known)
  return found.bits, Evaluation(*(np.array(_joined(records, key)).T for key in SCORES))


def _joined(records, key):
  return [value for record in records for value in record[key]]


def _means(records, key):
  """Over the pools, of every structure of the records, [S]."""
  return np.array([np.mean(values) for values in _joined(records, key)])


def shared_epochs(session: Session) -> float:
  """Passes over the training set of a sweep's shared pool."""
  return session.config.sweep.shared_epochs or session.config.train.epochs


def check_shared(session: Session, epochs: float) -> None:
  """Raises `UserError` for a sampler that cannot be, or a search when one is asked for."""
  num_steps = session.steps(epochs)
  session.sampler(num_steps)
  session.recipe(num_steps)
  options, num_gates = session.config.search, session.space.num_gates
  if options.method:
    selected(Search, options, seed=session.config.seed).check(num_gates)
  else:
    all_bits(num_gates)  # says so if there are too many
