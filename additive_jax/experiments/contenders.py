"""Networks of different models, trained on the same examples in the same order, judged alike, and
compared with a dense one.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd

from additive_jax import run
from additive_jax.errors import UserError
from additive_jax.experiments.fit import fit
from additive_jax.experiments.options import selected
from additive_jax.experiments.results import with_interval
from additive_jax.experiments.session import Session
from additive_jax.files.journal import Journal, read_all
from additive_jax.gates.structure import Structure
from additive_jax.models import Transformer
from additive_jax.models.active import active_flops
from additive_jax.models.costs import num_params
from additive_jax.models.kinds import RESIDUAL
from additive_jax.parallel import processes
from additive_jax.run.evaluate import Evaluation, evaluate_structures
from additive_jax.train import balance as balance_
from additive_jax.train.balance import Balance
from additive_jax.train.losses import Routed
from additive_jax.train.recipe import Recipe
from additive_jax.train.samplers import listed

log = logging.getLogger('additive_jax')

DENSE = 'dense'
SCORES = ('loss', 'accuracy')
BATCH = 32  # examples whose choices are looked at together


@dataclasses.dataclass(frozen=True)
class Contender:
  """One network of a comparison.

  Attributes:
    name: unique among them.
    family: what it is, for the colours of pictures.
    session: the run, with this network's model.
    recipe, sampler: what trains it; the same in every seed, so that it is compiled once.
    structure: the static structure it is, all-on for networks with routers.
  """

  name: str
  family: str
  session: Session
  recipe: Recipe
  sampler: Any
  structure: Structure

  @property
  def model(self):
    return self.session.model

  @property
  def num_steps(self) -> int:
    return self.session.steps(self.session.config.train.epochs)

  @property
  def has_routers(self) -> bool:
    return isinstance(self.recipe.loss, Routed)

  def trained(self, seed: int):
    """The trainer after its last step, trained now or restored."""
    trainer = self.session.trainer(self.recipe, self.sampler, seed)
    fit(self.session, trainer, self.num_steps, f'{self.name}-seed{seed}')
    return trainer


def make_contender(
  session: Session, name: str, family: str, model, *, balance: Balance | None = None, structure=None
) -> Contender:
  """A contender of `session`'s data and training options; without a balance, its structure (all-on
  by default) is static."""
  own = session.with_model(model)
  recipe = own.recipe(own.steps(own.config.train.epochs))
  if balance is not None:
    if own.config.train.distill:
      raise UserError(f'config.train.distill {own.config.train.distill} with routers: expected 0')
    own.check_whole('a balance of routers')
    recipe = dataclasses.replace(recipe, loss=Routed(balance))
  structure = own.space.all_on() if structure is None else own.space.parse(structure)
  slots = own.config.train.structures_per_step
  sampler = listed([structure], own.space.num_gates, slots)
  return Contender(name, family, own, recipe, sampler, structure)


def check_dense(session: Session) -> Transformer:
  """The model of the config as the dense transformer that others are made from and compared with.

  Raises:
    UserError: for another model, gates other than residual, or data that does not fit in memory.
  """
  model = session.model
  if not isinstance(model, Transformer) or model.routing is not None:
    raise UserError(
      f'{type(model).__name__} for networks with routers: expected config.model.name transformer'
    )
  if model.gates != (RESIDUAL,):
    raise UserError(f'config.model.gates {model.gates} with routers: expected residual alone')
  session.check_in_memory()
  return model


def balance_of(session: Session) -> Balance:
  """The options `config.balance`."""
  return selected(Balance, session.config.balance)


@dataclasses.dataclass(frozen=True)
class Inspection:
  """What a trained network with routers does with N examples.

  Attributes:
    loss, accuracy: means over the examples.
    facts: by site, means over the whole batches.
    chosen: int [N, T, S, k], numbers of what each token chose at each of S sites; None where
      nothing is chosen.
    on: bool [N, T, S], which tokens were computed; None for all.
  """

  loss: float
  accuracy: float
  facts: dict
  chosen: np.ndarray | None
  on: np.ndarray | None


@functools.partial(jax.jit, static_argnums=(0, 1))
def _look(model, objective, variables, x, y, key):
  outputs, facts, chosen = run.chosen(model, variables, x, key)
  return objective(outputs, y), facts, chosen


def inspect(contender: Contender, variables, batch) -> Inspection:
  """Runs (x [N, ...], y [N, ...]) in batches; what routers did is averaged over whole ones, of
  which the last is filled up with repetitions. Routers that draw at random draw anew for each."""
  log.info('looking at what the tokens of %s choose', contender.name)
  x, y = batch
  size, count = min(BATCH, len(x)), len(x)
  rows = np.minimum(np.arange(-(-count // size) * size), count - 1).reshape(-1, size)
  keys = jax.random.split(jax.random.key(0), len(rows))
  look = functools.partial(_look, contender.model, contender.session.objective, variables)
  parts = [processes.to_host(look(x[r], y[r], key)) for r, key in zip(rows, keys)]
  loss, accuracy = (
    float(np.concatenate([part[0][i] for part in parts])[:count].mean(dtype=np.float64))
    for i in range(2)
  )
  whole = parts[: count // size]
  facts = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *[facts for _, facts, _ in whole])
  names = sorted(facts)

  def joined(field):
    if any(getattr(parts[0][2][name], field) is None for name in names):
      return None
    found = [np.stack([getattr(part[name], field) for name in names], 2) for *_, part in parts]
    return np.concatenate(found)[:count]

  return Inspection(loss, accuracy, facts, joined('index'), joined('on'))


def train_all(session: Session, contenders: Sequence[Contender], journal: str) -> dict:
  """Trains and judges every contender for every seed, and journals each when it is done.

  Returns:
    By name, the records of all seeds: `loss` and `accuracy` on the test split, `train_loss`,
    `flops` (active, of one example's forward pass), `params`, `skipped`, and of networks with
    routers `sites`, what `balance.summary` says of each and its `load`.
  """
  folder = session.rundir.journals
  done = {(r['seed'], r['variant']): r for r in read_all(folder, journal)}
  log.info(
    'networks: %s; the first training of each compiles', ', '.join(c.name for c in contenders)
  )
  for seed in session.seeds:
    for contender in contenders:
      if (seed, contender.name) not in done:
        record = {'seed': seed, 'variant': contender.name, **_judged(contender, seed)}
        done[seed, contender.name] = record
        if processes.is_primary():
          Journal(folder / journal).append(record)
  return {c.name: [done[seed, c.name] for seed in session.seeds] for c in contenders}


def _judged(contender, seed):
  session, trainer = contender.session, contender.trained(seed)
  variables, x = processes.to_host(trainer.variables), session.test[0][:1]
  record = {'params': num_params(session.model, x)}
  record['skipped'] = int(processes.to_host(trainer.state.skipped))
  seen = session.data.train
  if contender.has_routers:
    test = inspect(contender, variables, session.test)
    train = inspect(contender, variables, (seen.x, seen.y))
    record['sites'] = {name.replace('__', '/'): _of_site(f) for name, f in test.facts.items()}
    record['flops'] = active_flops(session.model, x, test.facts, test.chosen)
  else:
    test, train = (_evaluated(contender, variables, split) for split in (session.test, seen))
    record['flops'] = session.space.flops(contender.structure)
  record |= {key: getattr(test, key) for key in SCORES}
  return record | {'train_loss': train.loss}


def _evaluated(contender, variables, batch) -> Evaluation:
  """Loss and accuracy of a network without routers, as numbers."""
  session = contender.session
  found = evaluate_structures(
    session.model,
    variables,
    batch,
    [contender.structure],
    task=session.objective,
    devices=session.workers,
  )
  return Evaluation(*(float(values[0]) for values in found))


def _of_site(facts):
  load = facts.structures if hasattr(facts, 'structures') else facts.load
  return {**balance_.summary(facts), 'load': np.asarray(load, float).round(6).tolist()}


def compare(contenders: Sequence[Contender], records: dict) -> pd.DataFrame:
  """One row per contender: scores with 95 % intervals over the seeds, and their differences from
  `dense`, paired by seed."""
  by_name = {name: pd.DataFrame(rows) for name, rows in records.items()}
  rows = []
  for contender in contenders:
    own, config = by_name[contender.name], contender.session.config
    flops = float(own['flops'].mean())
    examples = contender.num_steps * config.train.batch_size * config.train.structures_per_step
    row = {
      'variant': contender.name,
      'family': contender.family,
      'flops': flops,
      'params': int(own['params'].iloc[0]),
      'training_flops': 3 * examples * flops,  # a backward pass costs about two forward passes
    }
    for key in (*SCORES, 'train_loss'):
      row |= with_interval(key, own[key])
    for key in SCORES:
      if contender.name != DENSE:
        row |= with_interval(f'{key}_minus_dense', own[key] - by_name[DENSE][key])
    row['skipped'] = int(own['skipped'].sum())
    rows.append(row)
  return pd.DataFrame(rows)


def router_table(records: dict) -> pd.DataFrame:
  """One row per contender and site with a router: means over the seeds of what `balance.summary`
  says."""
  rows = []
  for name, found in records.items():
    for site in found[0].get('sites', {}):
      own = pd.DataFrame([record['sites'][site] for record in found]).drop(columns='load')
      rows.append({'variant': name, 'site': site, **own.mean().to_dict()})
  return pd.DataFrame(rows)


def loads(records: Sequence[dict]) -> dict[str, np.ndarray]:
  """By site, the load over the ideal even one of the most used structure, expert or module, the
  next, and so on; means over the seeds, since experts of two seeds have nothing in common but their
  rank."""
  found = {}
  for site in records[0].get('sites', {}):
    each = [np.sort(record['sites'][site]['load'])[::-1] for record in records]
    load = np.mean(each, axis=0)
    found[site] = load * load.size
  return found


def summarise(session: Session, experiment: str, table: pd.DataFrame, routers) -> dict:
  """The headline figures of a comparison."""
  figures = {}
  for row in table.to_dict('records'):
    row.pop('family')
    name = row.pop('variant')
    dropped = ('_minus_dense', '_minus_dense_ci95') if name == DENSE else ()
    figures[name] = {
      key: value for key, value in row.items() if key != 'skipped' and not key.endswith(dropped)
    }
  for name, rows in routers.groupby('variant', sort=False) if len(routers) else ():
    figures[name]['routers'] = rows.drop(columns='variant').set_index('site').mean().to_dict()
  return {
    'experiment': experiment,
    'data': session.data.name,
    'num_seeds': len(session.seeds),
    'variants': figures,
    'skipped': int(table['skipped'].sum()),
  }
