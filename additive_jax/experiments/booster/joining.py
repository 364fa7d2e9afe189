"""One pool of the large model, made of narrow copies, with its receipt."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from additive_jax import transplant
from additive_jax.batches import num_examples, rows
from additive_jax.experiments.arms import Start
from additive_jax.experiments.booster.narrow import BEST, PACK, Narrow, test_scores
from additive_jax.experiments.session import first_input
from additive_jax.models.additive import initial
from additive_jax.parallel import processes
from additive_jax.train.recipe import Recipe
from additive_jax.train.rule import with_inner
from additive_jax.train.state import State, init_state

log = logging.getLogger('additive_jax')

EXAMPLES = 64  # test examples of a receipt


@dataclasses.dataclass(frozen=True)
class Receipt:
  """What a large pool has to do with the small ones it was made of.

  Attributes:
    rule: how it was made, in words.
    exact: whether the large model computes what each of the small ones does.
    from_models: max |Δoutput| on `examples` test examples to the mean of the logits of the small
      models that it was made from.
    from_joined: the same to the one small pool that was grown: the receipt of `grow`, exact; None
      where none was.
    examples: how many.
  """

  rule: str
  exact: bool
  from_models: float
  from_joined: float | None
  examples: int


def join(narrow: Narrow, members: Sequence[State], recipe: Recipe, seed: int) -> Start:
  """Returns the start of the large model from narrow copies, as `config.booster.join` says.

  Its facts are the `receipt`, and test scores at the `start`.

  Args:
    narrow: what the copies are.
    members: their states.
    recipe: of the large model's training.
    seed: names what is drawn.
  """
  options, large = narrow.large.config.booster, narrow.large
  key = functools.partial(jax.random.fold_in, jax.random.key(seed))
  blank = initial(large.model, key(0), first_input(large.data))
  sizes: dict[str, Any] = {'key': key(2), 'place': narrow.place, 'unequal': options.unequal}
  if options.join == PACK and len(members) > 1:
    pools = [{'params': member.params} for member in members]
    packed = transplant.pack(narrow.model, pools, large.model, blank, **sizes)
    return _start(narrow, packed, pools, None, init_state(recipe, packed.variables))
  sources, one, words = _one_of(narrow, members)
  pool = {'params': one.params}
  grown = transplant.grow(narrow.model, pool, large.model, blank, **sizes)
  state = init_state(recipe, grown.variables)
  if options.optimizer_state:
    moved = transplant.grow_optimizer(grown, one.opt_state)
    moved = with_inner(state.opt_state, transplant.restart_schedules(moved), recipe.learning_rates)
    state = state._replace(opt_state=moved)
  return _start(narrow, grown, [{'params': m.params} for m in sources], pool, state, words)


def _one_of(narrow, members) -> tuple[Sequence[State], State, str]:
  """The copies that count, the one that is made of them, and how in words."""
  if len(members) == 1:
    return members, members[0], ''
  pools = [{'params': member.params} for member in members]
  if narrow.large.config.booster.join == BEST:
    # Where nothing was held out, on training examples: the test split judges.
    data = narrow.large.data
    known = narrow.large.valid
    if data.valid is None:
      known = data.train[np.arange(min(len(data.train), len(data.test)))]
    losses = [narrow.session.scores(pool, known)['loss'] for pool in pools]
    best = transplant.best(pools, losses)
    chosen = next(m for m, pool in zip(members, pools) if pool is best)
    return [chosen], chosen, f'best of {len(members)}, '
  mean = members[0]._replace(
    params=transplant.average(pools)['params'],
    opt_state=transplant.average_optimizer([member.opt_state for member in members]),
  )
  return members, mean, f'average of {len(members)}, '


def _start(narrow, made, pools, joined, state, words='') -> Start:
  """The start with its receipt, which is also logged."""
  x = rows(narrow.large.test[0], slice(EXAMPLES))
  structure = narrow.session.space.all_on()
  before = np.mean([_logits(narrow.model, pool, x, structure) for pool in pools], axis=0)
  after = _logits(narrow.large.model, made.variables, x, made.structure(structure))
  difference, from_joined = float(np.abs(before - after).max()), None
  if joined is not None:
    receipt = transplant.receipt(made, narrow.model, joined, narrow.large.model, x)
    from_joined = receipt.max_difference
    log.info('%s', receipt)
  exact, rule = made.exact and len(pools) == 1, words + made.rule
  if not exact:
    figures = num_examples(x), len(pools), difference
    log.info('%s (not exact): on %d examples, to the mean of %d models, %.2g', rule, *figures)
  receipt = Receipt(rule, exact, difference, from_joined, num_examples(x))
  state = processes.to_host(state)
  scores = test_scores(narrow.large, {'params': state.params})
  return Start(state, {'receipt': dataclasses.asdict(receipt), 'start': scores})


@functools.partial(jax.jit, static_argnums=(0, 3))
def _logits(model, variables, x, structure):
  return model.apply(variables, x, structure)
