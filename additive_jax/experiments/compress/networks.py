"""The networks of a compression: what each starts from, what it loses, and how it is trained."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from additive_jax.compress import cutting, levels, make_level
from additive_jax.compress.gradual import Gradual
from additive_jax.compress.keep import below_threshold, keep_zeros, largest
from additive_jax.compress.variational import (
  LOG_VARIANCE,
  MEAN,
  Variational,
  VariationalLoss,
  total_divergence,
)
from additive_jax.data import ArraySplit, Weighted
from additive_jax.experiments.arms import Arm, Start, Trained
from additive_jax.experiments.compress.judging import Network, judge
from additive_jax.experiments.compress.tables import DENSE, GRADUAL, MATCHED, UNTUNED, VARIATIONAL
from additive_jax.experiments.fit import Curves
from additive_jax.experiments.session import Session, first_input
from additive_jax.gates.structure import Structure
from additive_jax.parallel import processes
from additive_jax.run.objectives import Distilled, Taught
from additive_jax.run.tasks import Task
from additive_jax.train.optimizers import make_schedule
from additive_jax.train.recipe import Recipe
from additive_jax.train.state import init_state

START, TEACHER = 'start', 'teacher'
TEACHER_BATCH = 2048  # training examples that the teacher sees at once


class Compression:
  """The networks of a run. Recipes are made once, and with them their programs.

  Of each seed:

      start ──▶ teacher (if there is one)
        ├─────▶ dense
        ├─────▶ variational: learns its noise ──▶ loses weights ──▶ is tuned
        ├─────▶ magnitude_matched: loses as many that are small ──▶ is tuned
        ├─────▶ magnitude_0.9, …: loses that share ──▶ is tuned
        └─────▶ gradual_0.9, …: loses that share while it is tuned

  Attributes:
    session: the run.
    level: what is removed.
  """

  def __init__(self, session: Session):
    """Makes the recipes.

    Raises:
      UserError: for a level that the model does not have.
    """
    options = session.config.compress
    x = first_input(session.data)
    self.session = session
    self.level = make_level(options.level, session.model, x, inputs=options.inputs)
    self._task: Task = session.task
    if options.distill:
      loss = Distilled(self._task.loss, options.distill, options.temperature)
      self._task = dataclasses.replace(self._task, loss=loss)
    self._learning = self._learning_recipe()
    self._keeping = functools.cache(self._keeping_recipe)
    # Of one seed, since arms are trained a seed at a time.
    remember = functools.lru_cache(maxsize=1)
    self._started = remember(self._train_first)
    self._taught = remember(self._teach)
    self._learnt = remember(self._learn)

  def arms(self) -> list[Arm]:
    """Returns the networks of each seed, in the order in which they are trained."""
    options, steps = self.session.config.compress, self.session.training.steps
    whole = steps(options.epochs + options.tune_epochs)
    arms = [self._first, *([self._teacher] if self._has_teacher else [])]
    arms.append(self._kept(DENSE, whole))
    if options.tune_epochs:
      arms.append(self._noisy(UNTUNED))
      tag, tune_steps = f'{VARIATIONAL}-tuned-seed{{seed}}', steps(options.tune_epochs)
      arms.append(self._tuned(VARIATIONAL, self._learnt, tune_steps, tag))
    else:
      arms.append(self._noisy(VARIATIONAL))
    arms.append(self._tuned(MATCHED, lambda seed: self._smaller(seed, self._matching(seed)), whole))
    for share in options.sparsities:
      smaller = functools.partial(self._smaller, count=self.share(share))
      arms.append(self._tuned(f'magnitude_{share:g}', smaller, whole))
    gradual_steps = steps(options.gradual_epochs or options.epochs + options.tune_epochs)
    return arms + [self._gradual(share, gradual_steps) for share in options.gradual]

  def share(self, sparsity: float) -> int | dict[str, int]:
    """Returns how many stay, in all, or of units in each space, where that share is removed."""
    sizes = {name: int(np.prod(shape)) for name, shape in self.level.shapes}
    if isinstance(self.level, levels.Units):
      return {name: max(1, round((1 - sparsity) * size)) for name, size in sizes.items()}
    return max(1, round((1 - sparsity) * sum(sizes.values())))

  @property
  def _has_teacher(self) -> bool:
    """Whether a network is trained to teach the others."""
    options = self.session.config.compress
    return options.distill > 0 < options.teacher_epochs

  @functools.cached_property
  def _first(self) -> Arm:
    session = self.session
    num_steps = session.training.steps(session.config.train.epochs)
    sampler = session.training.sampler_of(session.space.all_on())
    judged = lambda trained: self._judge(trained, self._full(trained.variables['params']))
    recipe = session.training.recipe(num_steps)
    return Arm(START, session, recipe, sampler, num_steps, judge=judged)

  @functools.cached_property
  def _teacher(self) -> Arm:
    return self._kept(
      TEACHER, self.session.training.steps(self.session.config.compress.teacher_epochs)
    )

  def _kept(self, name, num_steps) -> Arm:
    """A network in which nothing is removed."""
    recipe = dataclasses.replace(self._keeping(num_steps), task=self.session.task)
    return self._arm(name, recipe, num_steps, self._started)

  def _tuned(self, name, before, num_steps, tag='') -> Arm:
    """A network in which what is zero stays zero, taught by the teacher."""
    return self._arm(name, self._keeping(num_steps), num_steps, before, tag, self._taught)

  def _arm(
    self,
    name: str,
    recipe: Recipe,
    num_steps: int,
    before: Callable[[int], Network],
    tag: str = '',
    session_of: Callable[[int], Session] | None = None,
  ) -> Arm:
    """A network that goes on from what `before` gives in a seed."""

    def start(seed: int) -> Start:
      network = before(seed)
      state = init_state(recipe, {'params': network.params})
      sampler = self.session.training.sampler_of(network.structure)
      return Start(state, session=session_of and session_of(seed), sampler=sampler)

    def judged(trained: Trained) -> dict[str, Any]:
      params = trained.variables['params']
      return self._judge(trained, dataclasses.replace(before(trained.seed), params=params))

    return Arm(name, self.session, recipe, self._first.sampler, num_steps, start, judged, tag)

  def _noisy(self, name) -> Arm:
    """The network that learns its noise, and is judged without what has too much of it."""
    recipe, options = self._learning, self.session.config.compress
    size = sum(int(np.prod(shape)) for _, shape in self.level.shapes)

    def start(seed: int) -> Start:
      pool = recipe.model.pool(self._started(seed).params)
      session = dataclasses.replace(self._taught(seed), model=recipe.model)
      return Start(init_state(recipe, {'params': pool}), session=session)

    def probe(trainer) -> dict[str, float]:
      params = trainer.state.params
      stays = below_threshold(recipe.model.log_alpha(params), options.threshold)
      return {
        'kept': sum(int(mask.sum()) for mask in stays.values()) / size,
        'divergence': float(total_divergence(recipe.model, params)),
      }

    return Arm(
      name,
      self.session,
      recipe,
      self._first.sampler,
      self.session.training.steps(options.epochs),
      start,
      lambda trained: self._judge(trained, self._learnt(trained.seed)),
      tag=f'{VARIATIONAL}-seed{{seed}}',
      curves=Curves(probe=probe),
    )

  def _gradual(self, share, num_steps) -> Arm:
    """The network that loses a share of its weights while it trains, taught by the teacher."""
    options, session = self.session.config.compress, self.session
    rate = options.gradual_rate * session.config.learning_rate
    faster = session.with_options({'learning_rate': rate})
    removing = max(1, round(options.gradual_share * num_steps))
    every = min(session.training.steps(1.0), removing)
    level, keep = self.level, self.share(share)
    assert isinstance(level, levels.Weights), 'another level is refused by study._check'
    assert isinstance(keep, int)
    loss = Gradual(level=level, keep=keep, num_steps=removing, every=every)
    recipe = dataclasses.replace(
      session.training.recipe(num_steps),
      task=self._task,
      optimizer=faster.training.make_optimizer(num_steps),
      loss=loss,
      average='mean',
    )

    def start(seed: int) -> Start:
      state = init_state(recipe, {'params': self._started(seed).params})
      return Start(state, session=self._taught(seed))

    def judged(trained: Trained) -> dict[str, Any]:
      last = flatten_dict(processes.to_host(trained.trainer.variables)['params'], sep='/')
      stays = {name: last[name] != 0 for name, _ in self.level.shapes}
      return self._judge(trained, self._without(trained.variables['params'], stays))

    name = f'{GRADUAL}_{share:g}'
    return Arm(name, session, recipe, self._first.sampler, num_steps, start, judged)

  def _judge(self, trained, network) -> dict[str, Any]:
    return judge(self.session, self.level, trained, network)

  def _train_first(self, seed) -> Network:
    """The network that all others of a seed start from."""
    return self._full(self._first.train(seed).variables['params'])

  def _teach(self, seed) -> Session:
    """The run with what a network says of its training examples beside their labels."""
    session = self.session
    if not session.config.compress.distill:
      return session
    params = self._started(seed).params
    if self._has_teacher:
      params = self._teacher.train(seed).variables['params']
    train, structure = session.in_memory(), Structure.all_on(session.space.num_gates)
    (variables,) = session.with_own_statistics([{'params': params}], [structure])
    parts = np.split(np.arange(len(train)), range(TEACHER_BATCH, len(train), TEACHER_BATCH))
    logits = [
      np.asarray(cutting.logits(session.model, variables, train[rows][0], structure))
      for rows in parts
    ]
    y, said = train.y, np.concatenate(logits)
    taught = Weighted(Taught(y.y, said), y.weight) if isinstance(y, Weighted) else Taught(y, said)
    # Targets that have logits beside labels are those of the task that learns from both.
    data = dataclasses.replace(session.data, train=ArraySplit(train.x, taught), task=TEACHER)
    return dataclasses.replace(session, data=data)

  def _learn(self, seed) -> Network:
    """The means of the network that learnt its noise, without what has too much of it."""
    pool = self._noisy(VARIATIONAL).train(seed).variables['params']
    log_alpha = {
      name: np.asarray(values) for name, values in self._learning.model.log_alpha(pool).items()
    }
    counts, _ = np.histogram(np.concatenate([a.ravel() for a in log_alpha.values()]), levels.BINS)
    stays = below_threshold(log_alpha, self.session.config.compress.threshold)
    network = self._without(pool[MEAN], stays)
    return dataclasses.replace(network, histogram=counts.tolist())

  def _smaller(self, seed, count) -> Network:
    """The network of a seed's start that loses all but `count` of what is small."""
    params = self._started(seed).params
    sizes = self.level.magnitudes(params)
    stays = largest(sizes, count, self.session.config.compress.scope)
    return self._without(params, stays)

  def _matching(self, seed) -> int | dict[str, int]:
    """As many as variational dropout keeps: weights and gates in all, units of each space, so that
    FLOPs are the same too."""
    counts = {name: int(mask.sum()) for name, mask in self._learnt(seed).stays.items()}
    return counts if isinstance(self.level, levels.Units) else sum(counts.values())

  def _full(self, params) -> Network:
    return Network(params, self.session.space.all_on())

  def _without(self, params, stays) -> Network:
    pruned = self.level.prune(params, stays)
    return Network(pruned.params, pruned.structure, pruned.units, stays)

  def _learning_recipe(self) -> Recipe:
    """That of the network that learns its noise."""
    session, options, data = self.session, self.session.config.compress, self.session.data
    num_steps = session.training.steps(options.epochs)
    rate = session.config.learning_rate * options.variance_rate
    faster = session.with_options({'learning_rate': rate}).config
    labels = lambda pool: {name: jax.tree.map(lambda _, n=name: n, pool[name]) for name in pool}
    optimizer = optax.multi_transform(
      {
        MEAN: session.training.make_optimizer(num_steps),
        # What pulls weights to zero has no meaning for log σ².
        LOG_VARIANCE: optax.adam(make_schedule(faster, num_steps)),
      },
      labels,
    )
    if (total := self._task.total(session.in_memory().y)) is not None:
      terms = max(1, round(float(total)))
    else:
      terms = len(data.train) * (data.example_shape[0] if data.task_name == 'language' else 1)
    loss = VariationalLoss(terms, options.kl, options.ramp * num_steps)
    model = Variational(self.level, options.log_variance)
    recipe = session.training.recipe(num_steps)
    of_means = lambda pattern: f'{MEAN}/(?:{pattern})'  # in the pool with noise
    return dataclasses.replace(
      recipe,
      model=model,
      task=self._task,
      optimizer=optimizer,
      loss=loss,
      average='mean',
      frozen=tuple(map(of_means, recipe.frozen)),
      learning_rates={of_means(pattern): rate for pattern, rate in recipe.learning_rates},
    )

  def _keeping_recipe(self, num_steps) -> Recipe:
    """That of networks in which what is zero stays zero."""
    optimizer = keep_zeros(self.session.training.make_optimizer(num_steps))
    recipe = self.session.training.recipe(num_steps)
    return dataclasses.replace(recipe, task=self._task, optimizer=optimizer)
