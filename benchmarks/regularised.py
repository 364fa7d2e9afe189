"""Trainings of small networks on few examples, with some regulariser, for `regularisers`; each
takes the FLOPs of the same number of epochs with all gates on.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from additive_jax.configs import default

import additive_jax as aj
from additive_jax import run
from additive_jax.models.costs import measure
from additive_jax.models.surrounding import in_mode, mode
from additive_jax.run.ensemble import evaluate_ensemble
from additive_jax.run.tasks import Task
from additive_jax.train.recipe import Loss, Recipe
from additive_jax.train.samplers import KeepRates
from additive_jax.train.trainer import Trainer

MEMBERS = 8  # structures of an ensemble
SCORES = ('loss', 'accuracy')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
  """How a network is regularised.

  Attributes:
    keep, ramp: keep rate of the last site, and how rates fall to it over depth; 1 is all-on.
    agree: weight of the divergence between the predictions of two structures of an example.
    distill: weight of that from all-on, which is trained beside the structures.
    last: share of the steps, at the end, with all gates on.
  """

  dropout: float = 0.0
  weight_decay: float = 0.0
  keep: float = 1.0
  ramp: str = 'uniform'
  agree: float = 0.0
  distill: float = 0.0
  last: float = 0.0

  @property
  def is_ours(self) -> bool:
    """Whether gates are random, in other ways than in stochastic depth."""
    return self.keep < 1 and self.ramp != 'linear'

  @property
  def words(self) -> str:
    """Names it in files and tables."""
    fields = [field for field in dataclasses.fields(self) if field.name != 'ramp' or self.keep < 1]
    changed = [f for f in fields if getattr(self, f.name) != f.default]
    return ', '.join(f'{f.name.replace("_", " ")} {getattr(self, f.name)}' for f in changed) or '–'


class Problem(NamedTuple):
  """What is learnt, by which network.

  Attributes:
    kind: the task.
    examples: drawn by each seed.
    epochs: with all gates on.
    batch: examples of a step.
    rate: peak of the learning rate.
    judged: examples of the split that judges.
  """

  kind: str
  examples: int
  epochs: int
  batch: int
  rate: float
  judged: int


PROBLEMS = {
  'images': Problem('classification', 1000, 60, 100, 2e-3, 9728),
  'bytes': Problem('language', 256, 30, 32, 3e-3, 2048),
}


@functools.cache
def loaded(kind: str) -> aj.data.Data:
  """Returns the data of a task."""
  if kind == 'language':
    return aj.data.load('stdlib', sequence_length=32)
  return aj.data.load(default.images()[0])


def network(problem: Problem, dropout: float) -> aj.Additive:
  """Returns the network, of 6 gates: a residual MLP of D=64, or a transformer of D=32."""
  if problem.kind == 'classification':
    return aj.models.MLP(6, 64, 128, 10, dropout=dropout)
  sizes = {'num_layers': 3, 'width': 32, 'num_heads': 2, 'hidden': 64, 'num_classes': 256}
  return aj.models.Transformer(**sizes, num_tokens=256, causal=True, max_tokens=32, dropout=dropout)


def evenly(split: Any, count: int) -> tuple[Any, Any]:
  """Returns up to `count` examples, spaced evenly."""
  return split[np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int)]


@functools.cache
def judges(problem_name: str, split: str) -> tuple[Any, Any]:
  """Returns the examples that judge."""
  problem = PROBLEMS[problem_name]
  return evenly(getattr(loaded(problem.kind), split), problem.judged)


def examples(problem: Problem, seed: int) -> aj.data.ArraySplit:
  """Returns the training examples that a seed draws."""
  train = loaded(problem.kind).train
  rows = np.random.default_rng(seed).choice(len(train), problem.examples, replace=False)
  return aj.data.ArraySplit(*train[np.sort(rows)])


class Schedule(NamedTuple):
  """An optimizer's numbers, as data.

  Attributes:
    adam: the state of Adam.
    rate, steps: peak of the cosine, and its length.
    weight_decay: as of AdamW.
  """

  adam: Any
  rate: Any
  steps: Any
  weight_decay: Any


def adamw() -> optax.GradientTransformation:
  """Returns AdamW down a cosine, with its numbers in its state."""
  adam = optax.scale_by_adam()

  def init(params):
    return Schedule(adam.init(params), *(jnp.float32(value) for value in (0, 1, 0)))

  def update(updates, state, params):
    done = jnp.minimum(state.adam.count / state.steps, 1)
    rate = state.rate * (1 + jnp.cos(jnp.pi * done)) / 2
    updates, inner = adam.update(updates, state.adam, params)
    updates = jax.tree.map(lambda u, p: -rate * (u + state.weight_decay * p), updates, params)
    return updates, state._replace(adam=inner)

  return optax.GradientTransformation(init, update)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draws:
  """A sampler of all-on, with the keep rates of examples: `keep` for `steps` steps, then 1."""

  keep: Any
  steps: Any

  num_structures = 1

  def rates(self, step):
    """Returns the rates at a step."""
    return jnp.where(step < self.steps, self.keep, 1.0)

  def __call__(self, key, step):
    """Returns all-on."""
    return jnp.ones((1, len(self.keep)), bool)


@dataclasses.dataclass(frozen=True)
class Drawn(Loss):
  """The mean loss of examples that have a random structure each.

  Attributes:
    agree, distill: see `Setting`.
  """

  agree: float = 0.0
  distill: float = 0.0

  def __call__(self, recipe, params, slot):
    """Returns the loss and no facts."""
    first = self._outputs(recipe, params, slot, 0)
    loss = recipe.mean_loss(first, slot)
    if self.distill:
      all_on = run.static(recipe.model, {'params': params}, slot.x, (True,) * len(slot.rates))
      teacher = jax.lax.stop_gradient(jax.nn.log_softmax(all_on))
      far = optax.losses.kl_divergence_with_log_targets(jax.nn.log_softmax(first), teacher)
      taught = (1 - self.distill) * loss + self.distill * recipe.mean(far, slot)
      return (recipe.mean_loss(all_on, slot) + taught) / 2, {}
    if not self.agree:
      return loss, {}
    second = self._outputs(recipe, params, slot, 1)
    a, b = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
    far = ((jnp.exp(a) - jnp.exp(b)) * (a - b)).sum(-1) / 2
    loss = (loss + recipe.mean_loss(second, slot)) / 2
    return loss + self.agree * recipe.mean(far, slot), {}

  def _outputs(self, recipe, params, slot, number):
    key = jax.random.fold_in(slot.key, number)
    gates = jax.random.bernoulli(key, slot.rates, (len(slot.x), len(slot.rates)))
    dropout = jax.random.fold_in(slot.dropout, number)
    with in_mode(dataclasses.replace(mode(), dropout=dropout)):
      return run.masked(recipe.model, {'params': params}, slot.x, gates)


class Plain(Drawn):
  """The mean loss of all-on."""

  def _outputs(self, recipe, params, slot, number):
    gates = (True,) * len(slot.rates)
    dropout = jax.random.fold_in(slot.dropout, number)
    with in_mode(dataclasses.replace(mode(), dropout=dropout)):
      return run.static(recipe.model, {'params': params}, slot.x, gates)


@functools.cache
def recipe_of(name: str, dropout: float, loss: Loss) -> Recipe:
  """Returns a recipe, the same object each time: one compiled program."""
  problem = PROBLEMS[name]
  return Recipe(network(problem, dropout), problem.kind, adamw(), loss)


@functools.cache
def space_of(name: str) -> aj.Space:
  """Returns the gates with their costs."""
  problem = PROBLEMS[name]
  return measure(network(problem, 0.0), examples(problem, 0)[np.arange(1)][0])


def steps_of(name: str, setting: Setting) -> tuple[np.ndarray, int]:
  """Returns the keep rates, and the steps that take the FLOPs of the problem's epochs; a backward
  pass costs two forward passes."""
  problem, space = PROBLEMS[name], space_of(name)
  rates = KeepRates(rate=setting.keep, ramp=setting.ramp).of_gates(space.num_gates)
  all_on = space.flops(space.all_on())
  passes = float(space.expected_flops(rates)) * (2 if setting.agree else 1)
  passes += all_on if setting.distill else 0
  passes = (1 - setting.last) * passes + setting.last * all_on
  return rates, round(problem.epochs * problem.examples * all_on / passes / problem.batch)


def trained(name: str, setting: Setting, seed: int, split: str) -> dict[str, Any]:
  """Trains with a setting, and returns its row of the file."""
  problem, start = PROBLEMS[name], time.process_time()
  rates, steps = steps_of(name, setting)
  kind = Drawn if setting.keep < 1 else Plain
  loss = kind(setting.agree, setting.distill)
  recipe = recipe_of(name, setting.dropout, loss)
  train = examples(problem, seed)
  sampler = Draws(jnp.asarray(rates, jnp.float32), jnp.float32((1 - setting.last) * steps))
  trainer = Trainer(recipe, train, sampler, batch_size=problem.batch, seed=seed)
  numbers = [jnp.float32(value) for value in (problem.rate, steps, setting.weight_decay)]
  state = trainer.state
  trainer.state = state._replace(opt_state=Schedule(state.opt_state.adam, *numbers))
  trainer.run(steps)
  row = {'problem': name, 'setting': setting.words, 'seed': seed, 'split': split, 'steps': steps}
  model, pool, task = network(problem, 0.0), trainer.variables, Task(problem.kind)

  def scores(bits, batch, prefix=''):
    given = evaluate_ensemble(model, [pool] * len(bits), bits, batch, task)
    return {f'{prefix}{score}': given[score] for score in SCORES}

  all_on = np.ones((1, len(rates)), bool)
  row |= scores(all_on, judges(name, split))
  row |= scores(all_on, evenly(train, 512 if len(train) > 512 else len(train)), 'train_')
  if split == 'test' and setting.is_ours:
    drawn = np.random.default_rng(seed).random((MEMBERS, len(rates))) < rates
    row |= scores(drawn, judges(name, split), 'ensemble_')
  return row | {'seconds': round(time.process_time() - start, 2)}
