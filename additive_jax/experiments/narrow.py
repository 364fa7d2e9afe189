"""The narrow phase of Exp 5: small copies of a model trained on clusters of the data, then one pool
of the large model made of them.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence

import jax
import numpy as np

from additive_jax import transplant
from additive_jax.errors import UserError
from additive_jax.experiments.fit import Curves, fit
from additive_jax.experiments.session import Session
from additive_jax.files.journal import Journal
from additive_jax.models.additive import initial
from additive_jax.parallel import processes
from additive_jax.run.evaluate import evaluate_structures
from additive_jax.train.fleet import Fleet
from additive_jax.train.recipe import Recipe
from additive_jax.train.state import State, init_state

log = logging.getLogger('additive_jax')

AVERAGE, PACK, BEST = ('average', 'pack', 'best')
CLOCK = 'seconds.jsonl'
BATCH = 64  # test examples of a receipt


@dataclasses.dataclass(frozen=True)
class Narrow:
  """What the narrow copies of a run are.

  Attributes:
    session: the run with the small model and its learning rate.
    place: the numbers of the large model's blocks that the small one's become.
    num_models: J.
    batch_size: of each copy and step; all J together take `config.train.batch_size` examples.
    num_steps: of each copy.
    sync_every: steps, 0 for never.
    recipe: how each is trained.
  """

  session: Session
  place: tuple[int, ...]
  num_models: int
  batch_size: int
  num_steps: int
  sync_every: int
  recipe: Recipe

  @property
  def model(self):
    return self.session.model

  @property
  def flops_per_step(self) -> float:
    """Of all J copies, forward and backward."""
    examples = self.batch_size * self.num_models
    return 3 * examples * self.session.space.flops(self.session.space.all_on())


def make_narrow(session: Session, num_models: int) -> Narrow:
  """The J narrow copies that `config.booster` asks for.

  Raises:
    UserError: for options of which no copies can be made.
  """
  options, size = session.config.booster, session.config.train.batch_size
  model, place = transplant.narrowed(session.model, options.width, options.structure or None)
  if num_models > len(session.data.train):
    raise UserError(
      f'config.booster.num_models {num_models} of {len(session.data.train)} training examples: '
      'expected at most as many clusters as examples'
    )
  if size % num_models:
    raise UserError(
      f'config.booster.num_models {num_models} of config.train.batch_size {size}: expected a '
      'number that divides it, since the copies share the batch of a step'
    )
  # Each copy is whole on its device, and has a training of its own.
  changed = {'train.pipe_devices': 1, 'schedule': options.schedule}
  rate = options.learning_rate if num_models > 1 else options.lone_learning_rate
  if rate:
    changed['learning_rate'] = rate
  small = session.with_model(model).with_options(changed)
  num_steps = small.steps(options.epochs)
  sync = small.steps(options.sync_epochs) if num_models > 1 and options.sync_epochs else 0
  recipe = small.recipe(num_steps)
  return Narrow(small, place, num_models, size // num_models, num_steps, sync, recipe)


def make_fleet(
  session: Session, narrow: Narrow, groups: Sequence[np.ndarray], seed: int, names=None
) -> Fleet:
  """The narrow copies, each on its group of examples.

  Args:
    names: numbers of those that are made, where not all are made here.
  """
  sync_every = narrow.sync_every if len(groups) > 1 else 0
  return Fleet(
    narrow.recipe,
    session.data.train,
    groups,
    batch_size=narrow.batch_size,
    seed=seed,
    names=names,
    # Networks that begin apart have nothing in common that could be averaged.
    same_start=session.config.booster.join == AVERAGE or sync_every > 0,
    sync_every=sync_every,
    devices=session.devices,
    chunk_steps=session.config.train.log_every,
  )


def train_together(
  session: Session, narrow: Narrow, groups: Sequence[np.ndarray], seed: int, name: str
) -> list[State]:
  """The states of all copies after their last step, trained now or restored."""
  fleet = make_fleet(session, narrow, groups, seed)
  labels = [f'cluster_{i}' for i in range(len(groups))] if len(groups) > 1 else ()

  def probe(fleet):
    pools = [{'params': state.params} for state in fleet.members()]
    if session.config.booster.join == AVERAGE:
      pools = [transplant.average(pools)]
    found = [judged(narrow.session, pool) for pool in pools]
    return {key: float(np.mean([each[key] for each in found])) for key in found[0]}

  clock = Journal(session.rundir.journals / CLOCK)
  fit(narrow.session, fleet, narrow.num_steps, name, Curves(labels, probe, clock))
  return fleet.members()


def judged(session: Session, variables, batch=None) -> dict[str, float]:
  """`test_loss` and `test_accuracy` of a pool of the session's model, all gates on."""
  found = evaluate_structures(
    session.model,
    variables,
    batch or session.test,
    [session.space.all_on()],
    task=session.objective,
    devices=session.workers,
  )
  return {'test_loss': float(found.loss[0]), 'test_accuracy': float(found.accuracy[0])}


@dataclasses.dataclass(frozen=True)
class Start:
  """What the large model starts from.

  Attributes:
    state: of its training.
    rule: how it was made, in words.
    exact: whether the large model computes what each of the small ones does.
    from_models: max |Δlogit| on `examples` test examples to the mean of the logits of the small
      models that it was made from.
    from_joined: the same to the one small pool that was grown: the receipt of `grow`, exact; None
      where none was.
    examples: how many.
  """

  state: State
  rule: str
  exact: bool
  from_models: float
  from_joined: float | None
  examples: int

  def receipt(self) -> dict:
    """All but the state."""
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != 'state'}


def join(
  session: Session, narrow: Narrow, members: Sequence[State], recipe: Recipe, seed: int
) -> Start:
  """One large pool of the narrow copies, as `config.booster.join` says, and its receipt.

  Args:
    members: states of the copies.
    recipe: of the large model's training.
  """
  options = session.config.booster
  key = jax.random.fold_in(jax.random.key(seed), 0)
  large = initial(session.model, key, session.test[0][:1])
  key = jax.random.fold_in(jax.random.key(seed), 2)
  pools = [{'params': state.params} for state in members]
  sizes = {'key': key, 'place': narrow.place, 'unequal': options.unequal}
  if options.join == PACK and len(members) > 1:
    made = transplant.pack(narrow.model, pools, session.model, large, **sizes)
    return _started(session, narrow, made, pools, None, init_state(recipe, made.variables))
  pool, opt_state, chosen, how = pools[0], members[0].opt_state, pools, ''
  if len(members) > 1 and options.join == BEST:
    # On training examples: the test split judges.
    known = session.data.train[np.arange(min(len(session.data.train), len(session.data.test)))]
    losses = [judged(narrow.session, pool, known)['test_loss'] for pool in pools]
    pool = transplant.best(pools, losses)
    index = next(i for i, each in enumerate(pools) if each is pool)
    opt_state, chosen, how = members[index].opt_state, [pool], f'best of {len(members)}, '
  elif len(members) > 1:
    pool = transplant.average(pools)
    opt_state = transplant.average_optimizer([state.opt_state for state in members])
    how = f'average of {len(members)}, '
  made = transplant.grow(narrow.model, pool, session.model, large, **sizes)
  state = init_state(recipe, made.variables)
  if options.optimizer_state:
    grown = transplant.grow_optimizer(made, opt_state)
    state = state._replace(opt_state=transplant.restart_schedules(grown))
  return _started(session, narrow, made, chosen, pool, state, how)


def _started(session, narrow, made, pools, joined, state, how=''):
  """The start with its receipt, which is also logged."""
  x, structure = session.test[0][:BATCH], narrow.session.space.all_on()
  before = np.mean([_logits(narrow.model, pool, x, structure) for pool in pools], axis=0)
  after = _logits(session.model, made.variables, x, made.structure(structure))
  difference, from_joined = float(np.abs(before - after).max()), None
  if joined is not None:
    receipt = transplant.receipt(made, narrow.model, joined, session.model, x)
    from_joined = receipt.max_difference
    log.info('%s', receipt)
  exact, rule = made.exact and len(pools) == 1, how + made.rule
  if not exact:
    said = (len(x), len(pools), difference)
    log.info('%s (not exact): on %d examples, to the mean of %d models, %.2g', rule, *said)
  return Start(processes.to_host(state), rule, exact, difference, from_joined, len(x))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _logits(model, variables, x, structure):
  return model.apply(variables, x, structure)
