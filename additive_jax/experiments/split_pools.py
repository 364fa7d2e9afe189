"""Shared pools that are split in two along a gate, and structures judged each in its own half.

After a warm-up on all structures the gate is found about which gradients of structures disagree
most. Two pools go on from there, one on structures with the gate off and one on those with it on.
Together they take the steps that the pool would have taken:

    step  0 ───── warm-up ───── w ──── gate off ──── w + (N − w)/2
                                └───── gate on ───── w + (N − w)/2

Source: few-shot architecture search by gradient matching, Hu et al. 2022 (arXiv:2203.15207).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from additive_jax.experiments.arms import Arm, Start, Trained
from additive_jax.experiments.options import refused
from additive_jax.experiments.session import Session
from additive_jax.experiments.shared import MOST_TESTED, judge_to_choose
from additive_jax.files.journal import Record
from additive_jax.gates.networks import num_networks
from additive_jax.parallel import processes
from additive_jax.train.disagreement import disagreement
from additive_jax.train.ranking_samplers import Held
from additive_jax.train.recipe import Recipe

GATE = 'split_gate'  # of a record: the name of the gate
NUM_STRUCTURES = 4  # whose gates are turned one by one, to see about which gradients disagree


def check_split(session: Session) -> None:
  """Raises `UserError` for a pool that cannot be split as `config.sweep.split_after` says."""
  config = session.config
  if config.search.method or num_networks(session.space) > MOST_TESTED:
    expected = f'0, or at most {MOST_TESTED:,} networks and no search of them'
    raise refused(config, 'sweep.split_after', 'search.method', expected=expected)
  num_steps = session.training.steps(config.sweep.shared_epochs or config.train.epochs)
  warm_up, last = split_steps(num_steps, config.sweep.split_after)
  if not 0 < warm_up < last:
    expected = f'a share that leaves steps before and after it of {num_steps}'
    raise refused(config, 'sweep.split_after', expected=expected)


def split_steps(num_steps: int, share: float) -> tuple[int, int]:
  """Returns after how many steps a pool is split, and the number of the last step of each half.

  >>> split_steps(100, 0.4)
  (40, 70)
  """
  warm_up = round(share * num_steps)
  return warm_up, warm_up + (num_steps - warm_up) // 2


def split_arm(
  session: Session, name: str, num_steps: int, bits: Bool[np.ndarray, 'structures gates']
) -> Arm:
  """Returns the arm of pools that are split in two.

  It trains the warm-up; its record has the scores of each structure in its half, and the gate.

  Args:
    session, name: as `Arm` takes them.
    num_steps: of the warm-up and both halves together.
    bits: the structures that are judged.
  """
  warm_up, last = split_steps(num_steps, session.config.sweep.split_after)
  recipe, sampler = session.training.recipe(last), session.training.sampler(last)
  judge = functools.partial(_judge, bits, last)
  return Arm(name, session, recipe, sampler, warm_up, judge=judge, judged=len(bits))


def _judge(bits: Bool[np.ndarray, 'structures gates'], last: int, trained: Trained) -> Record:
  """Trains both halves from where the warm-up ended, and judges each structure in its own."""
  gate = _gate(trained)
  is_mean = trained.averaged is not None and trained.variables is trained.averaged
  state = processes.to_host(trained.trainer.state)
  record: dict[str, list[float]] = {}
  for value, word in ((False, 'off'), (True, 'on')):
    held = Held(trained.arm.sampler, jnp.int32(gate), jnp.bool_(value))
    arm = dataclasses.replace(
      trained.arm,
      sampler=held,
      num_steps=last,
      start=lambda seed: Start(state=state),
      tag=f'{trained.arm.name}-seed{{seed}}-{word}',
    )
    half = arm.train(trained.seed)
    if is_mean:
      half = dataclasses.replace(half, variables=half.averaged)
    mine = bits[:, gate] == value
    for key, values in judge_to_choose(bits[mine], half).items():
      scores = np.asarray(record.setdefault(key, [np.nan] * len(bits)), float)
      scores[mine] = values
      record[key] = scores.tolist()
  return {**record, GATE: trained.session.space.names[gate]}


def _gate(trained: Trained) -> int:
  """Returns the number of the gate about which gradients disagree most, on the first batch of the
  training split; the draws of structures depend on the seed alone."""
  session = trained.session
  shape = (NUM_STRUCTURES, session.space.num_gates)
  bits = jax.random.bernoulli(jax.random.key(trained.seed), 0.5, shape)
  train = session.data.train
  batch = train[np.arange(min(session.config.train.batch_size, len(train)))]
  pool = processes.to_host(trained.trainer.state.params)
  return int(np.argmax(_program(trained.arm.recipe)(pool, bits, *batch)))


@functools.lru_cache(maxsize=4)
def _program(recipe: Recipe) -> Any:
  return jax.jit(functools.partial(disagreement, recipe))
