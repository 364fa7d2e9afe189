"""Methods that choose by a model of the loss, and by scores of single sites."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from additive_jax.errors import UserError
from additive_jax.search.costs import within
from additive_jax.search.greedy import by_harm, chain
from additive_jax.search.knapsack import best_within
from additive_jax.search.problem import Bits, Problem, Row, layers
from additive_jax.search.sparse import fit

SCORES = ('walsh', 'leave_one_out', 'blockwise')


@dataclasses.dataclass(frozen=True)
class Surrogate:
  """Models the loss as a sum over gates and pairs of gates, and solves that for the best structure
  at every cost.

  By `scores`:

  - 'walsh': a sparse Walsh regression (`sparse.fit`) on a leave-one-out and random structures,
    mostly without the gates that it calls harmless. Then, `rounds` times, the best structure of
    every level that is not known is evaluated and the regression is fitted again.
  - 'leave_one_out': the sum of what each gate costs when it alone is off; n + 1 evaluations.
  - 'blockwise': the sum of how far off the stream is after each site that is off, relative to the
    stream: a block-wise distillation in one forward pass, as the scores of Puzzle (Bercovich et
    al. 2024, arXiv:2411.19146) with 'off' as the one alternative.

  The structure of lowest sum within a limit is the optimum of a knapsack, `knapsack.best_within`.

  Attributes:
    scores: one of `SCORES`.
    samples: random structures; None is 2n.
    rounds: of evaluation and refit.
    levels: limits in equal steps down to the budget.
    most_pairs: interactions that the programme takes, the largest ones.
    temperature: of the random structures; 0 follows leave-one-out, infinity ignores it.
  """

  scores: str = 'walsh'
  samples: int | None = None
  rounds: int = 4
  levels: int = 12
  most_pairs: int = 60
  temperature: float = 1.0

  def __post_init__(self) -> None:
    if self.scores not in SCORES:
      raise UserError(f'scores {self.scores!r}: expected one of {", ".join(SCORES)}')

  def run(self, problem: Problem) -> None:
    if self.scores == 'walsh':
      self._by_regression(problem)
      return
    all_on = problem.all_on()
    if self.scores == 'blockwise':
      scores = -problem.look('blockwise')
    else:
      gates, bits, _ = problem.children(all_on)
      losses = problem.judge(np.concatenate([all_on[None], bits]))
      scores = np.zeros(len(all_on))
      scores[gates] = losses[0] - losses[1:]
    # A gate without a score stays on where its site is; whatever is not finite is kept.
    finite = np.isfinite(scores)
    scores = np.where(finite, scores, -2.0 * np.abs(scores[finite]).sum() - 1.0)
    limits = problem.levels(self.levels)
    found = [all_on, *(best_within(problem.costs, scores, limit) for limit in limits)]
    problem.judge(np.unique(np.array(found), axis=0))

  def _by_regression(self, problem: Problem) -> None:
    limits = problem.levels(self.levels)
    self._evaluate_samples(problem, limits)
    for _ in range(self.rounds):
      bits, losses = problem.judge.evaluated()
      model = fit(bits, losses).strongest(self.most_pairs)
      main, pairs = model.in_gates()
      found = _unknown(problem, main, pairs, limits)
      if not len(found):
        return
      problem.judge(found)

  def _evaluate_samples(self, problem: Problem, limits: Float[np.ndarray, ' levels']) -> None:
    """Evaluates random structures."""
    rng = np.random.default_rng([problem.seed, 0])
    order = by_harm(problem)
    count = 2 * len(order) if self.samples is None else self.samples
    rows = [self._sample(rng, problem, order, limits[i % len(limits)]) for i in range(count)]
    if rows:
      problem.judge(np.unique(np.array(rows), axis=0))

  def _sample(self, rng, problem: Problem, order: Int[np.ndarray, ' n'], limit: float) -> Row:
    """Returns a random structure that meets a limit: gates go off in an order drawn without
    replacement, those early in `order` first (Plackett and Luce, by Gumbel noise)."""
    place = np.empty(len(order))
    place[order] = np.arange(len(order)) / len(order)
    noise = rng.gumbel(size=len(order))
    drawn = np.argsort(4.0 * place - self.temperature * noise, kind='stable')
    return problem.shrunk(problem.all_on(), drawn, limit)


def _unknown(problem: Problem, main, pairs, limits) -> Bits:
  """Returns of every limit the structure of lowest modelled loss that was not evaluated, and is
  none of another limit."""
  known = problem.judge.evaluated().bits
  for limit in limits:
    inside = known[within(problem.costs, known, limit)]
    try:
      row = best_within(problem.costs, main, limit, pairs, without=inside)
    except UserError:  # all that are so cheap are known
      continue
    known = np.concatenate([known, row[None]])
  return known[len(problem.judge.evaluated().bits) :]


@dataclasses.dataclass(frozen=True)
class Cosine:
  """Switches off first what changes the direction of the stream least: 1 − cos(h before, h after),
  the mean over examples and tokens, in one forward pass of all-on.

  Source: ShortGPT (Men et al. 2024, arXiv:2403.03853), which takes whole layers.

  Attributes:
    sites: 'sublayer' takes each site by itself; 'layer' those together whose names begin alike, as
      `layer_03/attention` and `layer_03/mlp`.
  """

  sites: str = 'sublayer'

  def __post_init__(self) -> None:
    if self.sites not in ('sublayer', 'layer'):
      raise UserError(f'sites {self.sites!r}: expected sublayer or layer')

  def run(self, problem: Problem) -> None:
    change = problem.look('cosine' if self.sites == 'sublayer' else 'cosine_layer')
    order = np.argsort(change, kind='stable')
    rows = [problem.all_on(), *chain(problem, order)]
    if self.sites == 'layer':
      rows = [self._whole(problem, row) for row in rows]
    problem.judge(np.unique(np.array(rows), axis=0))

  def _whole(self, problem: Problem, row: Row) -> Row:
    """Returns a structure with every layer of which a site is off wholly off."""
    layer = layers(problem.space.names)
    hosts = problem.costs.hosts == np.arange(len(row))
    off = {name for name, on, is_host in zip(layer, row, hosts) if is_host and not on}
    return row & np.array([name not in off for name in layer])
