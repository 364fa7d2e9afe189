"""The declaration of the study `stochastic`: its arms, and what is judged of each."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from additive_jax.experiments import study
from additive_jax.experiments.arms import Arm, Trained
from additive_jax.experiments.options import refused
from additive_jax.experiments.records import Records
from additive_jax.experiments.scores import evaluate, sampled_structures
from additive_jax.experiments.session import Session
from additive_jax.experiments.stochastic.page import page
from additive_jax.experiments.stochastic.tables import NONE, make_tables
from additive_jax.gates.subsets import in_stages
from additive_jax.train.losses import PerSample
from additive_jax.train.samplers import listed

CONDITIONAL, PER_SAMPLE = ('conditional', 'per_sample')


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Variant(Arm):
  """One way to train a pool, named `none`, or a mode followed by `_equal_flops` and `_distilled`
  where they apply.

  Attributes:
    keep_rates: the exact probabilities that gates are on, at every step.
    forward_flops: expected FLOPs of an example's forward pass, mean over the steps.
    training_flops: of a whole training, the teacher's passes included.
  """

  keep_rates: Float[np.ndarray, 'steps gates']
  forward_flops: float
  training_flops: float


def _check(session):
  session.check_experts([session.model])
  session.check_in_memory()
  make_variants(session)


def make_variants(session: Session) -> list[Variant]:
  """Returns the variants of a run, the one with all gates on first.

  Raises:
    UserError: for options of which a variant cannot be made.
  """
  options, distill = session.config.stochastic, session.config.train.distill
  epochs, num_gates = session.config.train.epochs, session.space.num_gates
  num_steps = session.steps(epochs)
  judge = functools.partial(_judge, sampled_structures(session, options.num_structures))
  ones = np.ones((num_steps, num_gates))
  variants = [_variant(session, NONE, session.loss(), num_steps, _all_on(session), ones, judge)]
  for mode in options.modes:
    for weight in (0.0, distill) if distill else (0.0,):
      ending = '_distilled' if weight else ''
      same_epochs = _random(session, mode, f'{mode}{ending}', num_steps, judge, weight)
      share = same_epochs.training_flops / variants[0].training_flops
      longer = session.steps(epochs / share)
      variants.append(same_epochs)
      if longer != num_steps:
        name = f'{mode}_equal_flops{ending}'
        variants.append(_random(session, mode, name, longer, judge, weight))
  return variants


def _random(session, mode, name, num_steps, judge, distill):
  """A variant with random structures of the keep rates of `config.sampler`."""
  options = session.config.stochastic
  sampler = session.sampler(num_steps)
  if not hasattr(sampler, 'rates'):
    expected = 'uniform or bernoulli, which have keep rates'
    raise refused(session.config, 'sampler.name', expected=expected)
  if mode == CONDITIONAL:
    rates = np.asarray(jax.vmap(sampler.rates)(np.arange(num_steps)), float)
    loss = session.loss(distill, options.rescale)
    return _variant(session, name, loss, num_steps, sampler, rates, judge)
  session.check_whole('subsets per sample')
  ramp_steps = session.config.sampler.ramp * num_steps
  plan = in_stages(sampler.rates, num_steps, ramp_steps, options.stages, options.parts)
  size = session.config.train.batch_size
  by_stage = np.array([plan.probabilities(stage, size) for stage in range(len(plan.starts))])
  stages = np.searchsorted(plan.starts, np.arange(num_steps), side='right') - 1
  rates = by_stage[stages]
  loss = PerSample(plan, distill, options.rescale)
  return _variant(session, name, loss, num_steps, _all_on(session), rates, judge)


def _all_on(session):
  """A sampler that gives all slots of a step the full network."""
  everything, slots = session.space.all_on(), session.config.train.structures_per_step
  return listed([everything], session.space.num_gates, slots)


def _variant(session, name, loss, num_steps, sampler, keep_rates, judge):
  full = session.space.flops(session.space.all_on())
  forward = float(np.mean(session.space.expected_flops(keep_rates)))
  # A backward pass costs about twice a forward pass; the teacher has none.
  of_example = 3 * forward + (full if getattr(loss, 'distill', 0) else 0)
  examples = num_steps * sampler.num_structures * session.config.train.batch_size
  recipe = dataclasses.replace(session.recipe(num_steps), loss=loss)
  return Variant(
    name,
    recipe,
    sampler,
    num_steps,
    judge=judge,
    keep_rates=keep_rates,
    forward_flops=forward,
    training_flops=of_example * examples,
  )


def _judge(bits: Bool[np.ndarray, 'structures gates'], trained: Trained) -> dict[str, Any]:
  """The scores of all structures, and on the training split those of all-on."""
  session = trained.session
  test = evaluate(session, trained.variables, bits)
  full = [session.space.all_on()]
  train = evaluate(session, trained.variables, full, session.data.train)
  return {
    'loss': test.loss.tolist(),
    'accuracy': test.accuracy.tolist(),
    'train_loss': float(train.loss[0]),
    'train_accuracy': float(train.accuracy[0]),
    'skipped': trained.skipped,
  }


def _stages(session: Session, records: Records) -> Iterator[list[Variant]]:
  del records
  yield make_variants(session)


STUDY = study.Study(
  'stochastic',
  stages=_stages,
  check=_check,
  tables=make_tables,
  page=page,
  baseline=NONE,
)

run = STUDY.run
