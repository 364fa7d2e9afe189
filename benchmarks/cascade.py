"""Ensembles and cascades of structures of one pool, against one network and a deep ensemble.

Claim: at equal FLOPs, or at equal parameters, which of these is the most accurate.

  python benchmarks/cascade.py --data=images --seeds=5      # appends to runs/cascade/images.jsonl
  python benchmarks/cascade.py --data=few --seeds=5
  python benchmarks/cascade.py --data=tabular:digits --seeds=5

Method: residual MLPs on Fashion-MNIST averaged to 14×14, of 50,000 examples (4 narrow blocks, which
are too small for them) or 10,000 (6 wider ones, which are too large), with 10,000 to choose by and
10,000 to test; and on a table of scikit-learn's. Networks alone, pools of four structures (Exp 2)
and pools of four members with vectors of their own take as many steps, a batch for each member and
step. What is chosen (learning rates, on another seed; windows of cascades; all by loss) is chosen
on `valid`. FLOPs are those of an example's forward pass, with what structures share counted once. A
seed that the file has is not run again.
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

K, TUNING_SEED, RATES = 4, 100, (1e-3, 3e-3)
TASK = Task('classification')
PLAIN = Structures()


@dataclasses.dataclass(frozen=True)
class Setting:
  """A data set, its networks, and how long they learn.

  Attributes:
    data: with a split to choose by.
    blocks: of the network.
    sizes, narrow, wide: width and hidden units of the network, of one that costs a quarter, and of
      one that costs four times as much.
    cheap, dear, budget: blocks of the two structures of a cascade, and of the network whose FLOPs
      it may cost.
    nested: blocks of the structures of a pool, each a part of the next.
    batch_size, steps: of each member's training.
  """

  data: Any
  blocks: int
  sizes: tuple[int, int]
  narrow: tuple[int, int]
  wide: tuple[int, int]
  cheap: int
  dear: int
  budget: int
  nested: tuple[int, ...]
  batch_size: int
  steps: int

  def model(self, width: int, hidden: int) -> MLP:
    """Returns the network, or a narrower or wider one."""
    return MLP(self.blocks, width, hidden, self.data.num_outputs)

  def first(self, count: int) -> str:
    """Returns the structure of the first blocks."""
    return '1' * count + '0' * (self.blocks - count)

  @property
  def all_on(self) -> str:
    """The structure of all blocks."""
    return self.first(self.blocks)

  @property
  def without_one(self) -> list[str]:
    """K structures without one of the last blocks."""
    places = range(self.blocks - 1, self.blocks - 1 - K, -1)
    return [''.join('0' if i == place else '1' for i in range(self.blocks)) for place in places]


def setting(name: str) -> Setting:
  """Returns what is run on a data set."""
  if name not in ('images', 'few'):
    data = aj.data.load(name)
    return Setting(data, 4, (16, 64), (8, 24), (32, 146), 0, 2, 1, (0, 1, 2, 4), 32, 200)
  data = aj.data.load(default.images()[0])
  halved = lambda split: aj.data.ArraySplit(
    np.asarray(split.x).reshape(-1, 14, 2, 14, 2).mean((2, 4)), np.asarray(split.y)
  )
  splits = {part: halved(of) for part, of in data.splits.items()}
  if name == 'images':
    data = dataclasses.replace(data, **splits)
    return Setting(data, 4, (16, 128), (8, 46), (32, 300), 0, 2, 1, (0, 1, 2, 4), 128, 1500)
  splits['train'] = take(splits['train'], 10_000)
  data = dataclasses.replace(data, **splits)
  return Setting(data, 6, (64, 128), (32, 54), (128, 272), 1, 6, 3, (1, 2, 4, 6), 64, 1000)


@functools.lru_cache(maxsize=64)
def recipe_of(model: Any, rate: float, steps: int, loss: Loss) -> Recipe:
  """Returns a recipe, the same object each time, for a program is compiled for each."""
  optimizer = optax.adamw(optax.cosine_decay_schedule(rate, steps), weight_decay=1e-3)
  return Recipe(model, TASK, optimizer, loss)


class Seed:
  """All trainings and judgements of one seed."""

  def __init__(self, setting: Setting, seed: int, rates: dict[str, float]):
    self.setting, self.seed, self.rates = setting, seed, rates
    self.x, self.model = setting.data.test.x[:1], setting.model(*setting.sizes)
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
      self.recipe(model or self.model, kind, loss),
      self.setting.data.train,
      samplers.listed(structures, self.setting.blocks),
      batch_size=self.setting.batch_size,
      seed=1000 * self.seed,
      placement=Placement(mesh_.make_mesh(K, self.setting.batch_size, jax.devices()[:1])),
    )
    trainer.run(self.setting.steps)
    return jax.device_get(trainer.variables)

  def ensemble(self, name: str, model: Any, pools: Any, structures: Any, **costs: float) -> None:
    """Judges the mean prediction of networks."""
    bits = bits_of(structures, self.setting.blocks)
    of = lambda split: evaluate_ensemble(model, pools, bits, (split.x, split.y), TASK)
    data = self.setting.data
    self.rows[name] = {'valid': of(data.valid), 'test': of(data.test), **costs}

  def cascades(self, name: str, variables: Any, params: int) -> None:
    """Judges cascades that are as good as the dear structure, and those within a budget."""
    model, data, of = self.model, self.setting.data, self.setting
    budget = aj.measure(model, self.x).flops(of.first(of.budget))
    for average, word in ((False, ''), (True, ' averaged')):
      cascade = Cascade(of.first(of.cheap), of.first(of.dear), average=average)
      curve = cascade.curve(model, variables, data.valid, task=TASK)
      windows = {f'within {of.budget} blocks': curve.within(budget)}
      if not average:
        windows['as good as the dear one'] = curve.cheapest()
      for rule, window in windows.items():
        chosen = dataclasses.replace(cascade, window=window)
        found = chosen.evaluate(model, variables, data.test, task=TASK)
        facts = {'flops': found.flops, 'share': found.share, 'params': params}
        label = f'{name}, {of.cheap} → {of.dear}{word}, {rule}'
        self.rows[label] = {'test': found.scores, 'window': [window.low, window.high], **facts}

  def networks(self) -> None:
    """Trains networks alone, and judges them, their ensembles and their cascades."""
    model, of, space = self.model, self.setting, aj.measure(self.model, self.x)
    costs = lambda text: {'flops': space.flops(text), 'params': space.params(text)}
    counts = dict.fromkeys((of.blocks, of.dear, of.budget, of.cheap))
    found = self.alone(model, [of.first(count) for count in counts])
    alone = dict(zip(counts, found))
    for count, pool in alone.items():
      name = BASE if count == of.blocks else f'{BASE} of {count} blocks'
      self.ensemble(name, model, [pool], [of.first(count)], **costs(of.first(count)))
    others = [self.alone(model, [of.all_on], member)[0] for member in range(1, K)]
    pools, times = [alone[of.blocks], *others], {k: K * v for k, v in costs(of.all_on).items()}
    self.ensemble(DEEP, model, pools, [of.all_on] * K, **times)
    for name, sizes, count in ((NARROW, of.narrow, K), ('one wide network', of.wide, 1)):
      other = of.model(*sizes)
      pools = [self.alone(other, [of.all_on], member)[0] for member in range(count)]
      flops, params = aj.measure(other, self.x).flops(of.all_on), num_params(other, self.x)
      costs_ = {'flops': count * flops, 'params': count * params}
      self.ensemble(name, other, pools, [of.all_on] * count, **costs_)
    params = space.params(of.first(of.cheap)) + space.params(of.first(of.dear))
    self.cascades('networks alone', (alone[of.cheap], alone[of.dear]), params)

  def pools(self) -> None:
    """Trains structures together, and judges them, their ensembles and their cascades."""
    model, of, space = self.model, self.setting, aj.measure(self.model, self.x)
    params, nested = space.params(of.all_on), [of.first(count) for count in of.nested]
    pool = self.together(of.without_one, 'pools')
    flops = flops_together(model, self.x, of.without_one)
    costs = {'flops': flops, 'params': params}
    self.ensemble(POOL, model, [pool] * K, of.without_one, **costs)
    pool = self.together(nested, 'pools')
    for count in (of.cheap, of.dear):
      text = of.first(count)
      costs = {'flops': space.flops(text), 'params': params}
      self.ensemble(f'nested pool, {count} blocks', model, [pool], [text], **costs)
    costs = {'flops': flops_together(model, self.x, nested), 'params': params}
    self.ensemble('nested pool, ensemble', model, [pool] * K, nested, **costs)
    self.cascades('nested pool', pool, params)

  def members(self) -> None:
    """Trains members with vectors of their own, and judges their ensembles."""
    model, of, space = self.model, self.setting, aj.measure(self.model, self.x)
    adapted, same = Adapted(model, K), [of.all_on] * K
    params = num_params(adapted, self.x)
    for name, structures in ((MEMBERS, same), (f'{MEMBERS}, without one block', of.without_one)):
      trained = self.together(structures, 'members', adapted, Members())
      flops = float(space.costs(structures)[0].sum())
      self.ensemble(name, model, members(trained), structures, flops=flops, params=params)
    # As many FLOPs as one network, and fewer parameters.
    small = of.model(*of.narrow)
    adapted, flops = Adapted(small, K), K * aj.measure(small, self.x).flops(of.all_on)
    pools = members(self.together(same, 'members', adapted, Members()))
    costs = {'flops': flops, 'params': num_params(adapted, self.x)}
    self.ensemble(f'{MEMBERS}, narrow', small, pools, same, **costs)


def flops_together(model: Any, x: Any, structures: Any) -> float:
  """Returns the FLOPs of several structures of one pool, with the sites that they share once."""
  space, bits = aj.measure(model, x), np.unique(bits_of(structures, model.num_blocks), axis=0)
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
  losses, same = {}, [setting.all_on] * K
  for rate in RATES:
    seed = Seed(setting, TUNING_SEED, {part: rate})
    model, bits = seed.model, same
    if part == 'networks':
      pools, bits = seed.alone(model, [setting.all_on]), same[:1]
    elif part == 'pools':
      pools, bits = [seed.together(setting.without_one, part)] * K, setting.without_one
    else:
      pools = members(seed.together(same, part, Adapted(model, K), Members()))
    seed.ensemble(part, model, pools, bits)
    losses[rate] = seed.rows[part]['valid']['loss']
  return {part: min(losses, key=losses.__getitem__)}


def read(file: Path) -> list[dict[str, Any]]:
  """Returns the lines of a file of results; [] where it is not there."""
  return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def report(name: str, of: Setting, lines: list[dict[str, Any]]) -> None:
  """Prints the table: means over the seeds, and differences paired by seed, each from what has as
  many FLOPs or as many members."""
  by_seed: dict[int, dict[str, Any]] = {}
  for line in lines:
    by_seed.setdefault(line['seed'], {}).update(line['rows'])
  labels = {label: None for rows in by_seed.values() for label in rows}
  table = []
  for label in labels:
    base = base_of(label, of)
    found = [rows for rows in by_seed.values() if label in rows and base in rows]
    if not found:
      continue
    cells = [label, len(found)]
    cells += [f'{np.mean([rows[label][key] for rows in found]) / 1e3:.4g}' for key in COSTS]
    for score, scale, digits in (('accuracy', 100, 2), ('loss', 1, 4)):
      both = [[rows[which]['test'][score] for which in (label, base)] for rows in found]
      both = np.array(both) * scale
      values = np.stack([both[:, 0], both[:, 0] - both[:, 1]], axis=1)
      (mean, apart), (half, margin) = mean_and_ci(values)
      cells.append(f'{mean:.{digits}f} ± {half:.{digits}f}')
      cells.append('' if label == base else f'{apart:+.{digits}f} ± {margin:.{digits}f}')
    table.append([*cells, '' if label == base else base])
  head = ['', 'seeds', 'FLOPs, k', 'parameters, k', 'accuracy, %', 'difference', 'loss']
  seconds = sum(line['seconds'] for line in lines)
  rates = {kind: rate for line in lines for kind, rate in line['rates'].items()}
  said = f'CPU seconds: {seconds:.0f}. Learning rates: {rates}.'
  title = f'{name}, ± half the 95 % interval over the seeds'
  timing.report(title, [*head, 'difference', 'from'], table, said)


def base_of(label: str, of: Setting) -> str:
  """Returns what a row is compared with."""
  if 'within' in label:
    return f'{BASE} of {of.budget} blocks'
  if 'as good as' in label:
    return BASE if of.dear == of.blocks else f'{BASE} of {of.dear} blocks'
  return DEEP if label.startswith((POOL, MEMBERS)) and 'narrow' not in label else BASE


COSTS, BASE = ('flops', 'params'), 'one network'
DEEP, NARROW = f'deep ensemble of {K}', f'deep ensemble of {K} narrow ones'
POOL, MEMBERS = f'pool of {K} without one block, ensemble', f'{K} members with adapters'


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
  report(options.data, ready, lines)


if __name__ == '__main__':
  main()
