"""Pools that are trained on random structures, and the structures ranked or searched in them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Bool

from additive_jax.experiments.arms import Arm, Trained, scores_on_test
from additive_jax.experiments.options import selected
from additive_jax.experiments.scores import evaluate
from additive_jax.experiments.session import Session
from additive_jax.files.journal import Journal
from additive_jax.files.progress import Progress
from additive_jax.gates.structure import Structure, all_bits, bits_of
from additive_jax.parallel import processes
from additive_jax.run.evaluate import Evaluation
from additive_jax.search import Evaluated, Search

SCORES = ('loss', 'accuracy')


def shared_arm(
  session: Session, name: str, epochs: float, judge: Callable[[Trained], dict] = scores_on_test
) -> Arm:
  """Returns the arm of a pool that is trained on the structures of `config.sampler`.

  Args:
    session: the run.
    name: of the arm.
    epochs: passes of each slot over the training set.
    judge: as in `Arm`.
  """
  num_steps = session.steps(epochs)
  recipe, sampler = session.recipe(num_steps), session.sampler(num_steps)
  return Arm(name, recipe, sampler, num_steps, judge=judge)


def judge_all(
  bits: Bool[np.ndarray, 'structures gates'], trained: Trained
) -> dict[str, list[float]]:
  """Returns test loss and accuracy of structures in a pool, for the journal."""
  return {
    key: values.tolist()
    for key, values in evaluate(trained.session, trained.variables, bits)._asdict().items()
  }


def search_pools(
  session: Session, make_pools: Callable[[], Iterable[Trained]]
) -> tuple[Bool[np.ndarray, 'structures gates'], Evaluation]:
  """Searches pools for the structures of lowest mean loss, as `config.search` says.

  Each generation is journalled, so that a search goes on after the last one that was evaluated.

  Args:
    session: the run.
    make_pools: gives the pools; called once, and not for a search that is done.

  Returns:
    What was evaluated, and its loss and accuracy [pools, S].
  """
  options, num_gates = session.config.search, session.space.num_gates
  journal = _journal(session)
  lines = journal.records()
  known = len(_joined(lines, 'structures'))
  pools = functools.cache(lambda: list(make_pools()))
  bar = Progress(
    options.budget, 'search', unit='structure', start=known, enabled=processes.is_primary()
  )

  def evaluate_all(bits):
    session.check_stop()
    scores = [evaluate(session, pool.variables, bits) for pool in pools()]
    # The last generation may be filled up with structures that are not asked for.
    fresh = min(len(bits), options.budget - len(_joined(lines, 'structures')))
    line = {'structures': [str(Structure(tuple(row))) for row in bits[:fresh]]}
    for key in SCORES:
      line[key] = np.array([getattr(score, key)[:fresh] for score in scores]).T.tolist()
    if processes.is_primary():
      journal.append(line)
    lines.append(line)
    loss = _means(lines, 'loss')
    progress.advance(fresh, loss=loss.min(where=np.isfinite(loss), initial=np.inf))
    return Evaluation(*(_means([line], key) for key in SCORES))

  with bar as progress:
    known = Evaluated(
      bits_of(_joined(lines, 'structures'), num_gates), *(_means(lines, key) for key in SCORES)
    )
    selected(Search, options, seed=session.config.seed).run(evaluate_all, num_gates, known)
  return _searched(lines, num_gates)


def read_search(session: Session) -> tuple[Bool[np.ndarray, 'structures gates'], Evaluation]:
  """Returns what `search_pools` gave, from its journal."""
  return _searched(_journal(session).records(), session.space.num_gates)


def _journal(session):
  return Journal(session.rundir.journals / 'search.jsonl')


def _searched(lines, num_gates):
  scores = (np.array(_joined(lines, key)).T for key in SCORES)
  return bits_of(_joined(lines, 'structures'), num_gates), Evaluation(*scores)


def _joined(lines, key):
  return [value for line in lines for value in line[key]]


def _means(lines, key):
  """Over the pools, of every structure of the lines, [S]."""
  return np.array([np.mean(values) for values in _joined(lines, key)])


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
