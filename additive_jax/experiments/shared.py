"""Pools that are trained on random structures, and the structures ranked or searched in them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from additive_jax.experiments.arms import Arm, Trained
from additive_jax.experiments.options import selected
from additive_jax.experiments.session import Session
from additive_jax.experiments.stored import stored_scores
from additive_jax.files.journal import Journal
from additive_jax.files.progress import Progress
from additive_jax.gates.networks import all_networks, num_networks, places_of
from additive_jax.gates.structure import Space, Structure, all_bits
from additive_jax.parallel import processes
from additive_jax.report.wording import counted, score_name
from additive_jax.run.evaluate import Evaluation
from additive_jax.run.tasks import LOSS
from additive_jax.search import Search
from additive_jax.search.generations import Generations

STORED = 'stored'  # journal of what a search has evaluated, judged by stored statistics
MOST_TESTED = 2**12  # structures that are all judged on the test split, though chosen on another


def shared_arm(session: Session, name: str, epochs: float, **fields: Any) -> Arm:
  """Returns the arm of a pool that is trained on the structures of `config.sampler`.

  Args:
    session, name, fields: as `Arm` takes them.
    epochs: passes of each slot over the training set.
  """
  training = session.training
  steps = training.steps(epochs)
  return Arm(name, session, training.recipe(steps), training.sampler(steps), steps, **fields)


def judge_all(
  bits: Bool[np.ndarray, 'structures gates'], trained: Trained
) -> dict[str, list[float]]:
  """Returns test loss and metrics of structures in a pool, for the journal; and where a split was
  held out, as `valid_loss` and so on those by which structures are chosen. Of a network with
  BatchNorms `stored_loss` and so on are test scores by the statistics of all-on.
  """
  session = trained.session
  record = _listed(session.evaluate(trained.variables, bits))
  record |= stored_scores(session, trained.variables, bits)
  if session.data.valid is not None:
    record |= _listed(session.evaluate(trained.variables, bits, session.valid), 'valid_')
  return record


def judge_to_choose(
  bits: Bool[np.ndarray, 'structures gates'], trained: Trained
) -> dict[str, list[float]]:
  """Returns loss and metrics of structures on the split that they are chosen on, for the journal;
  and where that was held out, of at most 4,096, as `test_loss` and so on those on the test split.
  Of a network with BatchNorms `stored_loss` and so on are those by the statistics of all-on.
  """
  session = trained.session
  record = _listed(session.evaluate(trained.variables, bits, session.valid))
  record |= stored_scores(session, trained.variables, bits, session.valid)
  if session.data.valid is not None and len(bits) <= MOST_TESTED:
    record |= _listed(session.evaluate(trained.variables, bits), 'test_')
  return record


def _listed(scores: Evaluation, prefix: str = '') -> dict[str, list[float]]:
  return {f'{prefix}{key}': values.tolist() for key, values in scores.scores.items()}


def test_pools(
  session: Session,
  make_pools: Callable[[], Iterable[Trained]],
  bits: Bool[np.ndarray, 'structures gates'],
) -> None:
  """Judges structures that were chosen on another split in all pools on the test split, once.

  Args:
    session: the run.
    make_pools: gives the pools; not called where it was done before.
    bits: the structures, best first: all of at most 4,096, else the top K and all-on.
  """
  if session.data.valid is None or read_tested(session) is not None:
    return
  if len(bits) > MOST_TESTED:
    all_on = np.ones((1, bits.shape[1]), bool)
    bits = np.unique(np.concatenate([bits[: session.config.sweep.top_k], all_on]), axis=0)
  scores = [_listed(session.evaluate(pool.variables, bits)) for pool in make_pools()]
  _write_judged(session, 'tested', bits, scores)


def read_tested(
  session: Session,
) -> tuple[list[str], dict[str, Float[np.ndarray, 'pools S']]] | None:
  """Returns the structures that `test_pools` judged, and their scores; None for none."""
  return _read_judged(session, 'tested')


def _write_judged(session, name, bits, scores):
  """Writes what structures scored in all pools as the one line of a journal."""
  if processes.is_primary():
    texts = [str(Structure(tuple(row))) for row in bits]
    _judged(session, name).append({'structures': texts, 'pools': scores})
  processes.barrier(name)


def _read_judged(session, name):
  for line in _judged(session, name).sound():
    pools = line['pools']
    return line['structures'], {key: np.array([pool[key] for pool in pools]) for key in pools[0]}
  return None


def _judged(session, name):
  return Journal(session.rundir.journals / f'{name}.jsonl')


def search_pools(
  session: Session, make_pools: Callable[[], Iterable[Trained]]
) -> tuple[Bool[np.ndarray, 'structures gates'], Evaluation]:
  """Searches pools for the structures of lowest mean loss, or best in the metric that they are
  ranked by, on the split to choose by, as `config.search` says.

  Each generation is journalled, so that a search goes on after the last one that was evaluated.
  At the end, structures of a network with BatchNorms are judged by stored statistics too.

  Args:
    session: the run.
    make_pools: gives the pools; called once, and not for a search that is done.

  Returns:
    What was evaluated, and its loss and metrics [pools, S].
  """
  options, generations = session.config.search, _generations(session)
  pools = functools.cache(lambda: list(make_pools()))
  task = session.task
  by = 'lowest' if task.rank_by == LOSS else 'best'
  best = f'{by} {session.chosen_word} {score_name(task.rank_by)}'

  def evaluate(bits):
    session.check_stop()
    scores = [session.evaluate(pool.variables, bits, session.valid) for pool in pools()]
    # The last generation may be filled up with copies of its last structure.
    fresh = bits[: len(np.unique(bits, axis=0))]
    costs = generations.add(fresh, scores)
    every = generations.means().cost
    lowest = every.min(where=np.isfinite(every), initial=np.inf)
    progress.advance(len(fresh), **{best: task.sign(task.rank_by) * lowest})
    return costs

  primary, known = processes.is_primary(), len(generations)
  bar = Progress(options.budget, 'search', unit='structure', start=known, enabled=primary)
  with bar as progress:
    search = selected(Search, options, seed=session.config.seed)
    search.run(evaluate, session.space, generations.means())
  found, scores = generations.by_pool()
  if session.has_statistics and _read_judged(session, STORED) is None:
    judged = [stored_scores(session, pool.variables, found, session.valid) for pool in pools()]
    _write_judged(session, STORED, found, judged)
  return found, scores


def read_search(
  session: Session,
) -> tuple[Bool[np.ndarray, 'structures gates'], dict[str, Float[np.ndarray, 'pools S']]]:
  """Returns the structures that `search_pools` evaluated, and their scores, with those by stored
  statistics, from its journals."""
  bits, scores = _generations(session).by_pool()
  stored = _read_judged(session, STORED)
  return bits, {**scores.scores, **(stored[1] if stored else {})}


def _generations(session):
  journal = Journal(session.rundir.journals / 'search.jsonl')
  return Generations(journal, session.space, session.task, write=processes.is_primary())


def check_shared(session: Session, epochs: float) -> None:
  """Raises `UserError` for a pool that cannot be, or a search when one is asked for."""
  shared_arm(session, 'pool', epochs)
  options = session.config.search
  if options.method:
    selected(Search, options, seed=session.config.seed).check(session.space)
  else:
    all_networks(session.space)  # says so if there are too many


def most_networks(space: Space) -> str:
  """Returns in words how many networks there are.

  >>> from additive_jax.gates.structure import Gate
  >>> most_networks(Space((Gate('r'), Gate('a', within='r'))))
  '3 different networks, which the 2^2 = 4 structures are'
  """
  networks, structures = num_networks(space), 2**space.num_gates
  of_all = f'2^{space.num_gates} = {structures} structures'
  same = networks == structures
  return of_all if same else f'{counted(networks, "different network")}, which the {of_all} are'


def of_networks(space: Space, values: ArrayLike) -> Float[np.ndarray, '... networks']:
  """Returns values [..., N] of all networks; the journals of an earlier version have one for each
  of all 2^n structures.

  >>> from additive_jax.gates.structure import Gate
  >>> of_networks(Space((Gate('r'), Gate('a', within='r'))), [0.5, 0.4, 0.5, 0.3]).tolist()
  [0.5, 0.4, 0.3]
  """
  array = np.asarray(values, float)
  if array.shape[-1] == num_networks(space):
    return array
  _, first = np.unique(places_of(space, all_bits(space.num_gates)), return_index=True)
  return array[..., first]
