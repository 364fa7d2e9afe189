"""Random structures against dropout, weight decay and stochastic depth, at equal training FLOPs.

  python benchmarks/regularisers.py [--problem=images] [--results=FILE] [--minutes=M]

Claim: where examples are few, random structures give the full network a higher test accuracy than
no regulariser, and than the others at their own best settings.

Method: a vision transformer on 1,000 images of Fashion-MNIST (digits where it is not installed),
and a causal transformer on 256 sequences of 32 bytes of the standard library; the seed draws the
examples, the initial pool, their order and the structures. Every training takes the FLOPs of a
number of epochs with all gates on; structures that skip sites take more steps for them, down the
same cosine. The settings of each arm are chosen by accuracy on the validation split with the seeds
of `TUNED`, and the chosen ones are trained with those of `REPORTED` and judged on the test split.
Each example of a step has a structure of its own, drawn by gates that are independent. They are
computed as masks, so that rates are data and one program serves all settings; FLOPs are counted as
`PerSample` takes them, which gathers the examples that a gate is on for.

Rows are appended to FILE (JSON lines) as they come: a series that is stopped, or that is out of its
M minutes, goes on with the same command. The tables are of what the file has.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing
from additive_jax.configs import default

import additive_jax as aj
from additive_jax import run
from additive_jax.models.costs import measure
from additive_jax.models.surrounding import in_mode, mode
from additive_jax.report.statistics import mean_and_ci
from additive_jax.run.ensemble import evaluate_ensemble
from additive_jax.run.tasks import Task
from additive_jax.train.recipe import Loss, Recipe
from additive_jax.train.samplers import KeepRates
from additive_jax.train.trainer import Trainer

TUNED, REPORTED = range(100, 103), range(10)
MEMBERS = 8  # structures of an ensemble


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
  """How a network is regularised.

  Attributes:
    keep, ramp: keep rate of the last site, and how rates fall to it over depth; 1 is all-on.
    tokens: whether each token has a structure of its own, which saves no FLOPs.
    agree: weight of the divergence between the predictions of two structures of an example.
    distill: weight of that from all-on, which is trained beside the structures.
    last: share of the steps, at the end, with all gates on.
  """

  dropout: float = 0.0
  weight_decay: float = 0.0
  keep: float = 1.0
  ramp: str = 'uniform'
  tokens: bool = False
  agree: float = 0.0
  distill: float = 0.0
  last: float = 0.0

  @property
  def words(self) -> str:
    """Names it in files and tables."""
    fields = [field for field in dataclasses.fields(self) if field.name != 'ramp' or self.keep < 1]
    changed = [f for f in fields if getattr(self, f.name) != f.default]
    return ', '.join(f'{f.name.replace("_", " ")} {getattr(self, f.name)}' for f in changed) or '–'


class Problem(NamedTuple):
  """What is learnt, by which network.

  Attributes:
    epochs: with all gates on.
    tokens: of an example.
    judged: examples of the split that judges, a multiple of 512.
  """

  kind: str
  examples: int
  epochs: int
  batch: int
  rate: float
  tokens: int
  judged: int
  sizes: dict[str, Any]

  @property
  def is_text(self) -> bool:
    """Whether examples are bytes."""
    return self.kind == 'language'


BYTES = {'num_classes': 256, 'num_tokens': 256, 'causal': True, 'max_tokens': 32, 'hidden': 64}
PROBLEMS = {
  'images': Problem(
    'classification', 1000, 40, 50, 2e-3, 16, 9728, {'num_layers': 3, 'hidden': 64}
  ),
  'bytes': Problem('language', 256, 30, 32, 3e-3, 32, 2048, {'num_layers': 3, **BYTES}),
}


@functools.cache
def loaded(is_text: bool) -> tuple[Any, int]:
  """Returns the data, and the side of its patches."""
  if is_text:
    return aj.data.load('stdlib', sequence_length=32), 0
  name, patch = default.images()
  return aj.data.load(name), 7 if patch == 4 else patch


def network(problem: Problem, dropout: float) -> aj.models.Transformer:
  """Returns the network: 3 layers, 6 gates, D=32."""
  sizes = {'width': 32, 'num_heads': 2, 'dropout': dropout, **problem.sizes}
  if not problem.is_text:
    sizes |= {'num_classes': 10, 'patch_size': loaded(False)[1], 'max_tokens': problem.tokens}
  return aj.models.Transformer(**sizes)


def evenly(split: Any, count: int) -> tuple[Any, Any]:
  """Returns up to `count` examples, spaced evenly."""
  return split[np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int)]


@functools.cache
def judges(problem_name: str, split: str) -> tuple[Any, Any]:
  """Returns the examples that judge."""
  problem = PROBLEMS[problem_name]
  return evenly(getattr(loaded(problem.is_text)[0], split), problem.judged)


def examples(problem: Problem, seed: int) -> aj.data.ArraySplit:
  """Returns the training examples that a seed draws."""
  train = loaded(problem.is_text)[0].train
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
    by_token, agree, distill: see `Setting`.
  """

  by_token: bool = False
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
    axes = (len(slot.x), recipe.model.max_tokens) if self.by_token else (len(slot.x),)
    key = jax.random.fold_in(slot.key, number)
    gates = jax.random.bernoulli(key, slot.rates, (*axes, len(slot.rates)))
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
  of_structures = all_on if setting.tokens else float(space.expected_flops(rates))
  passes = of_structures * (2 if setting.agree else 1) + (all_on if setting.distill else 0)
  passes = (1 - setting.last) * passes + setting.last * all_on
  return rates, round(problem.epochs * problem.examples * all_on / passes / problem.batch)


def trained(name: str, setting: Setting, seed: int, split: str) -> dict[str, Any]:
  """Trains with a setting, and returns its row of the file."""
  problem, start = PROBLEMS[name], time.process_time()
  rates, steps = steps_of(name, setting)
  kind = Drawn if setting.keep < 1 else Plain
  loss = kind(setting.tokens, setting.agree, setting.distill)
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
    return {f'{prefix}{score}': given[score] for score in ('loss', 'accuracy')}

  all_on = np.ones((1, len(rates)), bool)
  row |= scores(all_on, judges(name, split))
  row |= scores(all_on, evenly(train, 512 if len(train) > 512 else len(train)), 'train_')
  if split == 'test' and setting.keep < 1:
    drawn = np.random.default_rng(seed).random((MEMBERS, len(rates))) < rates
    row |= scores(drawn, judges(name, split), 'ensemble_')
  return row | {'seconds': round(time.process_time() - start, 2)}


def rows_of(path: Path) -> list[dict[str, Any]]:
  """Returns what a file of results has; a line that was not written whole is left out."""
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line) for line in lines if line.endswith('}')]


def series(
  path: Path, name: str, settings: Iterable[Setting], seeds: Sequence[int], split: str, end: float
) -> None:
  """Trains what a file of results lacks, up to a moment of `time.time`."""
  keys = ('problem', 'setting', 'seed', 'split')
  done = {tuple(row[key] for key in keys) for row in rows_of(path)}
  for setting in settings:
    for seed in seeds:
      if (name, setting.words, seed, split) in done:
        continue
      if time.time() > end:
        return
      row = trained(name, setting, seed, split)
      with path.open('a') as file:
        file.write(json.dumps(row) + '\n')


# The settings of each arm, of which one is chosen on the validation split.
ARMS: dict[str, tuple[Setting, ...]] = {
  'nothing': (Setting(),),
  'dropout': tuple(Setting(dropout=rate) for rate in (0.05, 0.1, 0.2)),
  'weight decay': tuple(Setting(weight_decay=decay) for decay in (0.3, 1.0, 3.0)),
  'stochastic depth': tuple(Setting(keep=keep, ramp='linear') for keep in (0.5, 0.2)),
  'random structures': tuple(Setting(keep=keep) for keep in (0.5, 0.3, 0.2)),
}
OURS = ('random structures', 'random structures, weight decay')
# Other forms of random structures, looked at on the validation split alone.
TRIED = (
  Setting(keep=0.5, agree=1.0),
  Setting(keep=0.5, distill=1.0),
  Setting(keep=0.5, tokens=True),
  Setting(keep=0.5, last=0.2),
)


def chosen(rows: list[dict[str, Any]], name: str) -> dict[str, Setting]:
  """Returns the setting of each arm that has the highest mean accuracy on the validation split."""
  settings = {}
  for arm, grid in ARMS.items():
    accuracy = {s: of_setting(rows, name, s, 'valid', 'accuracy') for s in grid}
    known = {s: a.mean() for s, a in accuracy.items() if len(a) == len(TUNED)}
    if len(known) == len(grid):
      settings[arm] = max(known, key=lambda setting: known[setting])
  return settings


def of_setting(rows, name, setting, split, score) -> np.ndarray:
  """Returns a score of a setting for each seed, in their order."""
  key = (name, setting.words, split)
  found = [row for row in rows if (row['problem'], row['setting'], row['split']) == key]
  seeds = TUNED if split == 'valid' else REPORTED
  return np.array(
    [row[score] for row in sorted(found, key=lambda r: r['seed']) if row['seed'] in seeds]
  )


def interval(values: np.ndarray, digits: int, sign: bool = False) -> str:
  """Returns a mean ± half its 95 % interval over the seeds."""
  (mean,), (half,) = mean_and_ci(np.asarray(values)[:, None])
  return f'{mean:{"+" if sign else ""}.{digits}f} ± {half:.{digits}f}'.replace('-', '−')


def tell(rows: list[dict[str, Any]], name: str) -> None:
  """Prints the tables of a problem: the arms, the differences of the last ones from each other arm,
  and what was tried on the validation split."""
  settings = {
    arm: setting
    for arm, setting in chosen(rows, name).items()
    if len(of_setting(rows, name, setting, 'test', 'loss')) == len(REPORTED)
  }
  get = functools.partial(of_setting, rows, name)
  nothing, body = Setting(), []
  for arm, setting in settings.items():
    cells = [arm, setting.words, f'{steps_of(name, setting)[1]}']
    for score in ('loss', 'accuracy'):
      values = get(setting, 'test', score)
      cells.append(f'{get(setting, "test", f"train_{score}").mean():.3f}')
      cells.append(interval(values, 3 if score == 'loss' else 4))
      apart = values - get(nothing, 'test', score)
      cells.append(interval(apart, 3 if score == 'loss' else 4, True) if arm != 'nothing' else '')
    if setting.keep < 1:
      cells.append(f'{get(setting, "test", "ensemble_accuracy").mean():.4f}')
    body.append(cells + [''] * (10 - len(cells)))
  head = ['arm', 'setting', 'steps', 'train loss', 'test loss', 'from nothing']
  head += ['train accuracy', 'test accuracy', 'from nothing', f'{MEMBERS} structures together']
  timing.report(f'{name}, seeds {REPORTED[0]}–{REPORTED[-1]}, test split', head, body)
  ours = [arm for arm in settings if arm in OURS]
  print(f'\n| test accuracy of | {" | ".join(f"− {arm}" for arm in settings)} |')
  print(f'| --- | {" | ".join("---" for _ in settings)} |')
  for arm in ours:
    mine = get(settings[arm], 'test', 'accuracy')
    apart = [mine - get(s, 'test', 'accuracy') if a != arm else None for a, s in settings.items()]
    cells = [interval(values, 4, True) if values is not None else '' for values in apart]
    print(f'| {arm} | {" | ".join(cells)} |')


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--problem', choices=PROBLEMS, action='append')
  parser.add_argument('--results', type=Path, default=Path('regularisers.jsonl'))
  parser.add_argument('--minutes', type=float, default=float('inf'))
  given = parser.parse_args()
  end = time.time() + 60 * given.minutes
  for name in given.problem or PROBLEMS:
    for grid in ARMS.values():
      series(given.results, name, grid, TUNED, 'valid', end)
    series(given.results, name, TRIED, TUNED, 'valid', end)
    settings = chosen(rows_of(given.results), name)
    series(given.results, name, settings.values(), REPORTED, 'test', end)
    tell(rows_of(given.results), name)


if __name__ == '__main__':
  sys.exit(main())
