"""Ensembles and cascades of structures of one pool, against one network and a deep ensemble.

Claim: at equal FLOPs, or at equal parameters, which of these is the most accurate.

  python benchmarks/cascade.py --data=images --seeds=5      # appends to runs/cascade/images.jsonl
  python benchmarks/cascade.py --data=few --seeds=5         # 10,000 examples, wider networks
  python benchmarks/cascade.py --data=tabular:breast_cancer --seeds=5

Method: a residual MLP of 4 blocks, on Fashion-MNIST (averaged to 14×14; 50,000 examples to learn
from, 10,000 to choose by, 10,000 to test) or a table of scikit-learn's. Networks alone, pools of
four structures (Exp 2) and pools of four members with vectors of their own take as many steps, a
batch for each member and step. What is chosen (learning rates, on another seed; windows of
cascades; all by loss) is chosen on `valid`. FLOPs are those of an example's forward pass, with what
structures share counted once. A seed that the file has is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import timing
from additive_jax.configs import default

import additive_jax as aj
from additive_jax.data.splits import take
from additive_jax.files.programs import kept_programs
from additive_jax.gates.structure import bits_of
from additive_jax.models import MLP
from additive_jax.models.additive import embed, initial_shapes, readout, sites_of
from additive_jax.models.costs import num_params
from additive_jax.models.flops import count_flops
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel.placement import Placement
from additive_jax.report.statistics import mean_and_ci
from additive_jax.run.cascade import Cascade
from additive_jax.run.ensemble import evaluate_ensemble
from additive_jax.run.prefix import plan
from additive_jax.run.tasks import Task
from additive_jax.train import samplers
from additive_jax.train.adapters import Adapted, Members, members
from additive_jax.train.population import Population
from additive_jax.train.recipe import Loss, Recipe, Structures
from additive_jax.train.trainer import Trainer

BLOCKS, K, TUNING_SEED, RATES = 4, 4, 100, (1e-3, 3e-3, 1e-2)
TASK = Task('classification')
PLAIN = Structures()
ALL, TWO, ONE, NONE = '1111', '1100', '1000', '0000'  # by how many blocks are on
NESTED = (NONE, ONE, TWO, ALL)
IMAGES = ('images', 'few')
WITHOUT_ONE = ('1110', '1101', '1011', '0111')


@dataclasses.dataclass(frozen=True)
class Setting:
  """A data set, its networks, and how long they learn."""

  data: Any
  width: int
  hidden: int
  narrow: tuple[int, int]  # width and hidden of a quarter of the network
  wide: tuple[int, int]  # of four times the network
  batch_size: int
  steps: int

  def model(self, width: int = 0, hidden: int = 0) -> MLP:
    """Returns the network, or a narrower or wider one."""
    return MLP(BLOCKS, width or self.width, hidden or self.hidden, self.data.num_outputs)


def setting(name: str) -> Setting:
  """Returns what is run on a data set."""
  if name not in IMAGES:
    return Setting(aj.data.load(name), 16, 64, (8, 24), (32, 146), 32, 200)
  data = aj.data.load(default.images()[0])
  halved = lambda split: aj.data.ArraySplit(
    np.asarray(split.x).reshape(-1, 14, 2, 14, 2).mean((2, 4)), np.asarray(split.y)
  )
  splits = {part: halved(of) for part, of in data.splits.items()}
  if name == 'images':
    return Setting(dataclasses.replace(data, **splits), 16, 128, (8, 46), (32, 300), 128, 3000)
  splits['train'] = take(splits['train'], 10_000)
  return Setting(dataclasses.replace(data, **splits), 64, 128, (32, 48), (128, 288), 64, 1000)


@functools.lru_cache(maxsize=64)
def recipe_of(model: Any, rate: float, steps: int, loss: Loss) -> Recipe:
  """Returns a recipe, the same object each time, for a program is compiled for each."""
  optimizer = optax.adamw(optax.cosine_decay_schedule(rate, steps), weight_decay=1e-3)
  return Recipe(model, TASK, optimizer, loss)


class Seed:
  """All trainings and judgements of one seed."""

  def __init__(self, setting: Setting, seed: int, rates: dict[str, float]):
    self.setting, self.seed, self.rates = setting, seed, rates
    self.x = setting.data.test.x[:1]
    self.rows: dict[str, dict[str, Any]] = {}

  def recipe(self, model: Any, kind: str, loss: Loss = PLAIN) -> Recipe:
    """Returns how a network or pool of some kind learns, the same object each time."""
    return recipe_of(model, self.rates[kind], self.setting.steps, loss)

  def alone(self, model: Any, structures: Any, member: int = 0) -> list[Any]:
    """Returns `{'params': pool}` of networks trained by themselves from one init."""
    data, devices = self.setting.data, jax.devices()[:1]
    population = Population(
      self.recipe(model, 'networks'),
      data,
      batch_size=self.setting.batch_size,
      seed=1000 * self.seed + member,
      devices=devices,
    )
    members = population.train(structures, stop=self.setting.steps)
    found = {str(member.structure): {'params': member.state.params} for member in members}
    return [found[text] for text in structures]

  def together(self, structures: Any, kind: str, model: Any = None, loss: Loss = PLAIN) -> Any:
    """Returns `{'params': pool}` of structures trained together."""
    trainer = Trainer(
      self.recipe(model or self.setting.model(), kind, loss),
      self.setting.data.train,
      samplers.listed(structures, BLOCKS),
      batch_size=self.setting.batch_size,
      seed=1000 * self.seed,
      placement=Placement(mesh_.make_mesh(K, self.setting.batch_size, jax.devices()[:1])),
    )
    trainer.run(self.setting.steps)
    return jax.device_get(trainer.variables)

  def ensemble(self, name: str, model: Any, pools: Any, structures: Any, **costs: float) -> None:
    """Judges the mean prediction of networks."""
    bits = bits_of(structures, BLOCKS)
    of = lambda split: evaluate_ensemble(model, pools, bits, (split.x, split.y), TASK)
    data = self.setting.data
    self.rows[name] = {'valid': of(data.valid), 'test': of(data.test), **costs}

  def cascade(self, name: str, cascade: Cascade, variables: Any, **costs: Any) -> None:
    """Judges a cascade whose window is as good as the dear structure, and those within a budget."""
    model, data = self.setting.model(), self.setting.data
    budget = aj.measure(model, self.x).flops(ONE)
    curve = cascade.curve(model, variables, data.valid, task=TASK)
    both = cascade.curve(model, variables, data.valid, task=TASK, two_sided=True, points=64)
    windows = {'within the FLOPs of 1 block': curve.within(budget)}
    windows['two-sided, within these'] = both.within(budget)
    if not cascade.average:
      windows['as good as the dear one'] = curve.cheapest()
    for word, window in windows.items():
      chosen = dataclasses.replace(cascade, window=window)
      found = chosen.evaluate(model, variables, data.test, task=TASK)
      facts = {'flops': found.flops, 'share': found.share, 'window': [window.low, window.high]}
      self.rows[f'{name}, {word}'] = {'test': found.scores, **facts, **costs}

  def networks(self) -> None:
    """Trains networks alone, and judges them, their ensembles and their cascades."""
    model, x = self.setting.model(), self.x
    space = aj.measure(model, x)
    costs = lambda text: {'flops': space.flops(text), 'params': space.params(text)}
    found = self.alone(model, [ALL, TWO, ONE, NONE])
    alone = dict(zip((ALL, TWO, ONE, NONE), found))
    for text, pool in alone.items():
      name = BASE if text == ALL else f'one network of {text.count("1")} blocks'
      self.ensemble(name, model, [pool], [text], **costs(text))
    full = alone[ALL]
    pools = [full, *(self.alone(model, [ALL], member)[0] for member in range(1, K))]
    times = {key: K * value for key, value in costs(ALL).items()}
    self.ensemble(f'deep ensemble of {K}', model, pools, [ALL] * K, **times)
    for name, sizes, count in (
      (f'deep ensemble of {K} narrow ones', self.setting.narrow, K),
      ('one wide network', self.setting.wide, 1),
    ):
      other = self.setting.model(*sizes)
      pools = [self.alone(other, [ALL], member)[0] for member in range(count)]
      flops, params = aj.measure(other, x).flops(ALL), num_params(other, x)
      self.ensemble(name, other, pools, [ALL] * count, flops=count * flops, params=count * params)
    params = space.params(NONE) + space.params(TWO)
    for average, word in ((False, ''), (True, ' averaged')):
      cascade = Cascade(NONE, TWO, average=average)
      self.cascade(f'alone, 0 → 2{word}', cascade, (alone[NONE], alone[TWO]), params=params)

  def pools(self) -> None:
    """Trains structures together, and judges them, their ensembles and their cascades."""
    model = self.setting.model()
    space = aj.measure(model, self.x)
    params = space.params(ALL)
    pool = self.together(WITHOUT_ONE, 'pools')
    flops = flops_together(model, self.x, WITHOUT_ONE)
    self.ensemble(
      'pool of 3 of 4 blocks, ensemble', model, [pool] * K, WITHOUT_ONE, flops=flops, params=params
    )
    nested = self.together(NESTED, 'pools')
    for text in NESTED:
      costs = {'flops': space.flops(text), 'params': params}
      name = f'nested pool, {text.count("1")} blocks'
      self.ensemble(name, model, [nested], [text], **costs)
    flops = flops_together(model, self.x, NESTED)
    self.ensemble('nested pool, ensemble', model, [nested] * K, NESTED, flops=flops, params=params)
    for average, word in ((False, ''), (True, ' averaged')):
      cascade = Cascade(NONE, TWO, average=average)
      self.cascade(f'nested pool, 0 → 2{word}', cascade, nested, params=params)

  def members(self) -> None:
    """Trains members with vectors of their own, and judges their ensembles."""
    model = self.setting.model()
    space, adapted = aj.measure(model, self.x), Adapted(model, K)
    params = num_params(adapted, self.x)
    for name, structures in (
      (f'{K} members with adapters, 4 blocks', (ALL,) * K),
      (f'{K} members with adapters, 3 of 4 blocks', WITHOUT_ONE),
    ):
      trained = self.together(structures, 'members', adapted, Members())
      pools, flops = members(trained), float(space.costs(structures)[0].sum())
      self.ensemble(name, model, pools, structures, flops=flops, params=params)
    # As many FLOPs as one network, and fewer parameters.
    small = self.setting.model(*self.setting.narrow)
    adapted, flops = Adapted(small, K), K * aj.measure(small, self.x).flops(ALL)
    pools = members(self.together((ALL,) * K, 'members', adapted, Members()))
    params = num_params(adapted, self.x)
    name = f'{K} narrower members with adapters'
    self.ensemble(name, small, pools, (ALL,) * K, flops=flops, params=params)


def flops_together(model: Any, x: Any, structures: Any) -> float:
  """Returns the FLOPs of several structures of one pool, with the sites that they share once."""
  space, bits = aj.measure(model, x), np.unique(bits_of(structures, BLOCKS), axis=0)
  walk = plan(bits, rounds=1, width=len(bits), sites=sites_of(model))
  sites = float(walk.count[0] @ [gate.flops for gate in space.gates])
  variables = initial_shapes(model, x)
  stream = jax.eval_shape(functools.partial(embed, model), variables, x)
  of_readout = count_flops(functools.partial(readout, model), variables, stream)
  return space.fixed_flops + sites + (len(bits) - 1) * of_readout


PARTS = {'networks': Seed.networks, 'pools': Seed.pools, 'members': Seed.members}


def tuned(setting: Setting, part: str) -> dict[str, float]:
  """Returns the learning rate that gives the least loss on `valid`, on a seed that is not reported,
  by the kind that it is of."""
  model, losses = setting.model(), {}
  for rate in RATES:
    seed = Seed(setting, TUNING_SEED, {part: rate})
    if part == 'networks':
      seed.ensemble(part, model, seed.alone(model, [ALL]), [ALL])
    elif part == 'pools':
      seed.ensemble(part, model, [seed.together(WITHOUT_ONE, part)] * K, WITHOUT_ONE)
    else:
      trained = seed.together((ALL,) * K, part, Adapted(model, K), Members())
      seed.ensemble(part, model, members(trained), (ALL,) * K)
    losses[rate] = seed.rows[part]['valid']['loss']
  return {part: min(losses, key=losses.__getitem__)}


def read(file: Path) -> list[dict[str, Any]]:
  """Returns the lines of a file of results; [] where it is not there."""
  return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def report(name: str, lines: list[dict[str, Any]]) -> None:
  """Prints the table: means over the seeds, and differences from one network, paired by seed."""
  by_seed: dict[int, dict[str, Any]] = {}
  for line in lines:
    by_seed.setdefault(line['seed'], {}).update(line['rows'])
  seeds = [rows for rows in by_seed.values() if 'one network' in rows]
  labels = {label: None for rows in seeds for label, row in rows.items() if 'test' in row}
  table = []
  for label in labels:
    found = [rows for rows in seeds if label in rows]
    cells = [label, len(found)]
    cells += [f'{np.mean([rows[label][key] for rows in found]) / 1e3:.4g}' for key in COSTS]
    for score, scale, digits in (('accuracy', 100, 2), ('loss', 1, 4)):
      values = [
        [rows[label]['test'][score], rows[label]['test'][score] - rows[BASE]['test'][score]]
        for rows in found
      ]
      (mean, apart), (half, margin) = mean_and_ci(np.array(values) * scale)
      cells += [
        f'{mean:.{digits}f} ± {half:.{digits}f}',
        f'{apart:+.{digits}f} ± {margin:.{digits}f}',
      ]
    table.append(cells)
  less = f'minus {BASE}'
  head = ['', 'seeds', 'FLOPs, k', 'parameters, k', 'accuracy, %', less, 'loss', less]
  seconds = sum(line['seconds'] for line in lines)
  rates = {kind: rate for line in lines for kind, rate in line['rates'].items()}
  said = f'CPU seconds: {seconds:.0f}. Learning rates: {rates}.'
  timing.report(f'{name}, ± half the 95 % interval over the seeds', head, table, said)


COSTS, BASE = ('flops', 'params'), 'one network'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--data', default='images')
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('--folder', type=Path, default=Path('runs/cascade'))
  parser.add_argument('--parts', nargs='+', default=list(PARTS), choices=list(PARTS))
  parser.add_argument('--minutes', type=float, default=np.inf, help='begins nothing after these')
  options = parser.parse_args()
  file = options.folder / f'{options.data.replace(":", "-")}.jsonl'
  lines, ready = read(file), setting(options.data)
  file.parent.mkdir(parents=True, exist_ok=True)
  known = {(line['part'], line['seed']): line for line in lines}
  begun = time.monotonic()
  with kept_programs():
    for number, part in itertools.product(range(options.seeds), options.parts):
      if (part, number) in known or time.monotonic() - begun > 60 * options.minutes:
        continue
      start = time.process_time()
      rates = next((line['rates'] for line in lines if line['part'] == part), None)
      rates = rates or tuned(ready, part)
      seed = Seed(ready, number, rates)
      PARTS[part](seed)
      seconds = time.process_time() - start
      line = {'part': part, 'seed': number, 'rates': rates, 'seconds': seconds}
      lines.append(line | {'rows': seed.rows})
      with file.open('a') as out:
        out.write(json.dumps(lines[-1]) + '\n')
  report(options.data, lines)


if __name__ == '__main__':
  main()
