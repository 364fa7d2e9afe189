"""Exp 3: random structures as a regulariser, against the same training with all gates on.

For each seed, pools are trained from the same init on the same data in the same order: with all
gates on, and for each of `config.stochastic.modes` with random structures, for as many epochs and
again for as many FLOPs.
`run` gives a result with:

  table         structures.csv: a row for each structure, with its scores in the pool of each
                variant; columns without a name are of the first one with random structures
  variants      variants.csv: scores of the full network, the train–test gap, means over structures
  stored        stored.csv: of a network with BatchNorms, see `stored.stored_table`
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from additive_jax.experiments.arms import Arm, Trained
from additive_jax.experiments.options import refused
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.shared import judge_all
from additive_jax.experiments.stochastic_page import NONE, page
from additive_jax.experiments.stored import scores_with_stored, stored_table
from additive_jax.experiments.study import Result, Study
from additive_jax.experiments.tables import structure_table
from additive_jax.files.journal import Record
from additive_jax.gates.networks import num_networks, sampled_networks
from additive_jax.gates.subsets import in_stages
from additive_jax.report.comparison import compare
from additive_jax.run.tasks import Task
from additive_jax.train.losses import PerSample
from additive_jax.train.recipe import Loss
from additive_jax.train.samplers import Sampler

CONDITIONAL, PER_SAMPLE = ('conditional', 'per_sample')


class Draws(NamedTuple):
  """How structures are drawn.

  Attributes:
    loss: what is minimised; draws the structures of examples.
    sampler: draws those of slots.
    keep_rates: the exact probabilities that gates are on, at every step.
  """

  loss: Loss
  sampler: Sampler
  keep_rates: Float[np.ndarray, 'steps gates']


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Variant(Arm):
  """One way to train a pool, named `none`, or a mode followed by `_equal_flops` and `_distilled`
  where they apply.

  Attributes:
    keep_rates: see `Draws`.
    forward_flops: expected FLOPs of an example's forward pass, mean over the steps.
    training_flops: of a whole training, the teacher's passes included.
  """

  keep_rates: Float[np.ndarray, 'steps gates']
  forward_flops: float
  training_flops: float


def make_variants(session: Session) -> list[Variant]:
  """Returns the variants of a run, the one with all gates on first.

  Raises:
    UserError: for options of which a variant cannot be made.
  """
  epochs, distill = session.config.train.epochs, session.config.train.distill
  steps = session.training.steps(epochs)
  ones = np.ones((steps, session.space.num_gates))
  all_on = session.training.sampler_of(session.space.all_on())
  none = _variant(session, NONE, Draws(session.training.loss(), all_on, ones))
  variants = [none]
  for mode in session.config.stochastic.modes:
    for weight in (0.0, distill) if distill else (0.0,):
      ending = '_distilled' if weight else ''
      same_epochs = _variant(session, f'{mode}{ending}', _draws(session, mode, steps, weight))
      variants.append(same_epochs)
      longer = session.training.steps(epochs / (same_epochs.training_flops / none.training_flops))
      if longer != steps:
        draws = _draws(session, mode, longer, weight)
        variants.append(_variant(session, f'{mode}_equal_flops{ending}', draws))
  return variants


def _draws(session, mode, num_steps, distill) -> Draws:
  """Random structures of the keep rates of `config.sampler`."""
  options, training = session.config.stochastic, session.training
  sampler = training.sampler(num_steps)
  if not hasattr(sampler, 'rates'):
    expected = 'uniform or bernoulli, which have keep rates, for random structures'
    raise refused(session.config, 'sampler.name', expected=expected)
  if mode == CONDITIONAL:
    rates = np.asarray(jax.vmap(sampler.rates)(np.arange(num_steps)), float)
    return Draws(training.loss(distill, options.rescale), sampler, rates)
  training.check_whole('subsets per sample')
  ramp_steps = session.config.sampler.ramp * num_steps
  plan = in_stages(sampler.rates, num_steps, ramp_steps, options.stages, options.parts)
  size = session.config.train.batch_size
  by_stage = np.array([plan.probabilities(stage, size) for stage in range(len(plan.starts))])
  stages = np.searchsorted(plan.starts, np.arange(num_steps), side='right') - 1
  loss = PerSample(subsets=plan, distill=distill, rescale=options.rescale)
  return Draws(loss, training.sampler_of(session.space.all_on()), by_stage[stages])


def _variant(session, name, draws) -> Variant:
  num_steps, space, bits = len(draws.keep_rates), session.space, _judged_structures(session)
  forward = float(np.mean(space.expected_flops(draws.keep_rates)))
  # A backward pass costs about twice a forward pass; the teacher has none.
  teacher = space.flops(space.all_on()) if getattr(draws.loss, 'distill', 0) else 0
  examples = num_steps * draws.sampler.num_structures * session.config.train.batch_size
  return Variant(
    name,
    session,
    dataclasses.replace(session.training.recipe(num_steps), loss=draws.loss),
    draws.sampler,
    num_steps,
    judge=functools.partial(_judge, bits),
    judged=len(bits),
    keep_rates=draws.keep_rates,
    forward_flops=forward,
    training_flops=(3 * forward + teacher) * examples,
  )


def _judged_structures(session) -> Bool[np.ndarray, 'structures gates']:
  limit = session.config.stochastic.num_structures
  return sampled_networks(session.space, limit, session.config.seed)


def _judge(bits: Bool[np.ndarray, 'structures gates'], trained: Trained) -> dict[str, Any]:
  """The scores of all structures, and on the training split those of all-on."""
  session = trained.session
  train = session.scores(trained.variables, session.seen())
  return {
    **judge_all(bits, trained),
    **{f'train_{key}': value for key, value in train.items()},
    'skipped': trained.skipped,
  }


def _check(session):
  session.machine.check_networks([session.model])
  make_variants(session)


def _stages(session: Session, records: Records) -> Iterator[list[Variant]]:
  del records
  yield make_variants(session)


def _tables(session: Session, records: Records) -> Result:
  """Returns the tables `structures` and `variants`, and the summary."""
  bits = _judged_structures(session)
  _, first, *others = records.arms
  pools = {'': records[first]}
  pools |= {f'{name}_': records[name] for name in (NONE, *others)}
  structures = structure_table(session, bits, pools)
  variants = _variants(session, records, bits.all(1))
  both = {name: scores_with_stored(session.task, records[name]) for name in records.arms}
  summary = _summary(session, variants, len(bits))
  tables = {'structures': structures, 'variants': variants}
  return Result(tables | stored_table(session.task, both), summary)


def _variants(session, records, all_on):
  scores, facts = {}, {}
  for name, variant in records.arms.items():
    scores[name] = _by_seed(records[name], all_on, session.task)
    facts[name] = {
      'steps': variant.num_steps,
      'epochs': variant.num_steps * session.config.train.batch_size / len(session.data.train),
      'forward_flops': variant.forward_flops,
      'training_flops': variant.training_flops,
      'skipped': sum(record['skipped'] for record in records[name]),
    }
  return compare(scores, NONE, facts=facts, differences=list(scores[NONE].columns))


def _by_seed(
  records: list[Record], all_on: Bool[np.ndarray, ' structures'], task: Task
) -> pd.DataFrame:
  """Scores of one variant in each seed: of the full network, and means over the structures."""
  full = {key: np.array([np.array(r[key])[all_on][0] for r in records]) for key in task.scores}
  train = {f'train_{key}': np.array([r[f'train_{key}'] for r in records]) for key in task.scores}
  # By how much a network is worse on the test split.
  gaps = {key: task.sign(key) * (full[key] - train[f'train_{key}']) for key in task.scores}
  return pd.DataFrame(
    {
      **full,
      **train,
      **{f'{key}_gap': gap for key, gap in gaps.items()},
      **{f'structures_{key}': [np.mean(r[key]) for r in records] for key in task.scores},
    }
  )


def _summary(session, variants, num_judged) -> dict[str, Any]:
  num_gates, networks = session.space.num_gates, num_networks(session.space)
  rows = variants.set_index('variant')
  scores, headline = session.task.scores, session.task.headline
  keys = [*scores, 'train_loss', 'loss_gap', f'structures_{headline}']
  paired = [f'{key}_minus_{NONE}' for key in (*scores, 'loss_gap')]
  figures = {}
  for name in rows.index:
    chosen = keys if name == NONE else keys + paired
    columns = ['epochs', 'training_flops', *(c for key in chosen for c in (key, f'{key}_ci95'))]
    figures[name] = {column: rows.loc[name, column] for column in columns}
  return {
    'num_gates': num_gates,
    'num_networks': num_judged,
    'num_structures': 2**num_gates if num_judged == networks else num_judged,
    'rescale': session.config.stochastic.rescale,
    'variants': figures,
    'skipped': int(variants['skipped'].sum()),
  }


STUDY = Study('stochastic', _stages, check=_check, tables=_tables, page=page, baseline=NONE)

run = STUDY.run
