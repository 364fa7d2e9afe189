"""One pool trained on random structures, and the structures ranked in it."""

from __future__ import annotations

import numpy as np

from additive_jax import placement
from additive_jax.evaluate import Evaluation, evaluate_structures
from additive_jax.experiments.fit import fit
from additive_jax.experiments.session import Session
from additive_jax.journal import Journal, read_all
from additive_jax.search import check_search, search
from additive_jax.structure import all_bits
from additive_jax.train import Trainer


def train_shared(session: Session, seed: int, epochs: float, name: str) -> Trainer:
  """A pool trained on the structures of `config.sampler`, for `epochs` passes of each slot."""
  num_steps = session.steps(epochs)
  trainer = session.trainer(session.recipe(num_steps), session.sampler(num_steps), seed)
  fit(session, trainer, num_steps, name)
  return trainer


def evaluate_pool(session: Session, trainer: Trainer, bits: np.ndarray) -> Evaluation:
  """Test loss and accuracy of structures [S, n] of a pool."""
  pool = placement.to_host(trainer.variables)
  return evaluate_structures(
    session.model, pool, session.test, bits, task=session.objective, devices=session.workers
  )


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
      trainer = train_shared(session, seed, epochs, f'shared-seed{seed}')
      found = evaluate_pool(session, trainer, bits)
      done[seed] = {'seed': seed, 'loss': found.loss.tolist(), 'accuracy': found.accuracy.tolist()}
      if placement.is_primary():
        Journal(folder / f'shared-{shard}-of-{num_shards}.jsonl').append(done[seed])
  if num_shards > 1:
    return None
  rows = [done[seed] for seed in session.seeds]
  return Evaluation(*(np.array([row[key] for row in rows]) for key in ('loss', 'accuracy')))


def search_shared(session: Session) -> tuple[np.ndarray, Evaluation]:
  """Trains a pool per seed and searches them as `search_pools` does."""
  epochs = shared_epochs(session)
  pools = [train_shared(session, seed, epochs, f'shared-seed{seed}') for seed in session.seeds]
  return search_pools(session, pools)


def search_pools(session: Session, pools: list[Trainer]) -> tuple[np.ndarray, Evaluation]:
  """Searches pools for the structures of lowest mean loss, as `config.search` says.

  Returns:
    What was evaluated, bool [S, n], and loss and accuracy [pools, S].
  """
  options = session.config.search
  seen = {}

  def evaluate(bits):
    session.check_stop()
    found = [evaluate_pool(session, pool, bits) for pool in pools]
    loss, accuracy = (np.array([evaluation[i] for evaluation in found]) for i in range(2))
    for s, row in enumerate(bits):
      seen[row.tobytes()] = loss[:, s], accuracy[:, s]
    return Evaluation(loss.mean(0), accuracy.mean(0))

  found = search(
    evaluate,
    session.space.num_gates,
    budget=options.budget,
    method=options.method,
    population=options.population,
    seed=session.config.seed,
  )
  by_pool = np.array([seen[row.tobytes()] for row in found.bits])  # [S, 2, pools]
  return found.bits, Evaluation(by_pool[:, 0].T, by_pool[:, 1].T)


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
    check_search(num_gates, options.budget, options.method, options.population)
  else:
    all_bits(num_gates)  # says so if there are too many
