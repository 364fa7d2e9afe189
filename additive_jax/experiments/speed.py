"""How fast a training was: examples a second, and the share of what the devices could compute."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import jax
import numpy as np

from additive_jax.experiments.session import Session
from additive_jax.files.journal import Journal
from additive_jax.parallel import processes
from additive_jax.parallel.peak import matmul_peak
from additive_jax.train.trainer import Trainer

log = logging.getLogger('additive_jax')

LEAST = 1.0  # seconds of steps, below which nothing is said
DRAWS = 64  # of the sampler, for the mean FLOPs of a slot


@dataclasses.dataclass
class Clock:
  """Adds up steps and their seconds, but for the first ones, which compile."""

  steps: int = 0
  seconds: float = 0.0
  warm: bool = False

  def add(self, steps: int, seconds: float) -> None:
    """Counts some steps."""
    if self.warm:
      self.steps, self.seconds = self.steps + steps, self.seconds + seconds
    self.warm = True


def say_speed(session: Session, trainer: Any, name: str, clock: Clock) -> None:
  """Logs how fast a training was, and writes it to `journals/speed.jsonl`, apart from the curves,
  which are the same each time. A second of steps is the least."""
  if not isinstance(trainer, Trainer) or clock.seconds < LEAST:
    return
  slots = trainer.sampler.num_structures
  examples = slots * trainer.batch_size * clock.steps / clock.seconds
  flops = 3 * examples * mean_flops(session, trainer)  # a backward pass costs two forward ones
  dtype = str(getattr(trainer.recipe, 'dtype', None) or 'float32')
  peak = matmul_peak(list(trainer.mesh.devices.flat), dtype)
  facts = {
    'examples_per_second': examples,
    'flops_per_second': flops,
    'peak_flops_per_second': peak,
    'utilisation': flops / peak,
  }
  if processes.is_primary():
    share, most = 100 * facts['utilisation'], peak / 1e9
    text = '%s: %s examples/s, %.2g %% of the %s GFLOP/s that matmuls reach here'
    log.info(text, name, f'{examples:,.0f}', share, f'{most:,.0f}')
    journal = Journal(session.rundir.journals / 'speed.jsonl')
    journal.append({'tag': name, 'steps': clock.steps, 'seconds': clock.seconds} | facts)


def mean_flops(session: Session, trainer: Trainer) -> float:
  """Returns the mean FLOPs of an example's forward pass in the structures of the sampler."""
  keys = jax.random.split(jax.random.key(0), DRAWS)
  bits = np.asarray(jax.vmap(trainer.sampler, (0, None))(keys, trainer.step // 2))
  return float(session.space.costs(bits.reshape(-1, bits.shape[-1]).astype(bool))[0].mean())
