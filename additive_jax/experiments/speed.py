"""How fast a training was: examples a second, and the share of what the devices could compute."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import pandas as pd

from additive_jax.experiments.session import Session
from additive_jax.files.journal import Journal
from additive_jax.parallel import processes
from additive_jax.parallel.peak import matmul_peak
from additive_jax.report.page import Piece, table
from additive_jax.train.fleet import Fleet
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


def say_speed(session: Session, trainer: Trainer | Fleet, name: str, clock: Clock) -> None:
  """Says how fast the training of a pool or of a fleet was, see `say`."""
  if clock.seconds < LEAST:
    return
  slots = trainer.sampler.num_structures if isinstance(trainer, Trainer) else trainer.size
  examples = slots * trainer.batch_size * clock.steps
  if isinstance(trainer, Trainer):
    flops = mean_flops(session, trainer)
  else:
    flops = session.space.flops(trainer.structure)
  dtype = getattr(trainer.recipe, 'dtype', None)
  say(session, name, clock, examples, examples * flops, list(trainer.mesh.devices.flat), dtype)


def say(
  session: Session,
  name: str,
  clock: Clock,
  examples: float,
  flops: float,
  devices: Sequence[jax.Device],
  dtype: str | None = None,
) -> None:
  """Logs how fast a training was, and writes it to `journals/speed.jsonl`, apart from the curves,
  which are the same each time. A second of steps is the least.

  Args:
    session: the run.
    name: of the training.
    clock: of its steps.
    examples: that it took in them.
    flops: of their forward passes; a backward pass costs two of these.
    devices: that it ran on.
    dtype: of its matmuls; None is float32.
  """
  if clock.seconds < LEAST or not processes.is_primary():
    return
  reached = 3 * flops / clock.seconds
  peak = matmul_peak(devices, str(dtype or 'float32'), reached=reached)
  facts = {
    'examples_per_second': examples / clock.seconds,
    'flops_per_second': reached,
    'peak_flops_per_second': peak,
    'utilisation': reached / peak,
  }
  text = '%s: %s examples/s, %s %% of the %s GFLOP/s that matmuls reach here'
  share, rate = 100 * facts['utilisation'], facts['examples_per_second']
  word = f'{share:.0f}' if share >= 10 else f'{share:.2g}'
  log.info(text, name, f'{rate:,.0f}', word, f'{peak / 1e9:,.0f}')
  part, count = session.shard
  file = f'speed-{part}-of-{count}.jsonl' if count > 1 else 'speed.jsonl'
  line = {'tag': name, 'steps': clock.steps, 'seconds': clock.seconds} | facts
  Journal(session.rundir.journals / file).append(line)


def speeds(session: Session) -> dict[str, dict[str, float]]:
  """Returns how fast each training of a run was, by its name; of one that was stopped, all its
  parts together."""
  found: dict[str, dict[str, float]] = {}
  for path in sorted(session.rundir.journals.glob('speed*.jsonl')):
    for line in Journal(path).sound():
      facts = {key: float(value) for key, value in line.items() if key != 'tag'}
      before = found.get(line['tag'], facts | {'steps': 0.0, 'seconds': 0.0})
      seconds = before['seconds'] + facts['seconds']
      mean = {
        key: (before[key] * before['seconds'] + facts[key] * facts['seconds']) / seconds
        for key in facts
      }
      added = {'steps': before['steps'] + facts['steps'], 'seconds': seconds}
      found[line['tag']] = mean | added
  return found


def speed_piece(found: Mapping[str, Mapping[str, float]]) -> Piece | None:
  """Returns the part of a page that says how fast trainings were; None for none that took long
  enough."""
  rows = [
    {
      'training': name,
      'steps timed': int(facts['steps']),
      'seconds': facts['seconds'],
      'examples/s': facts['examples_per_second'],
      'GFLOP/s': facts['flops_per_second'] / 1e9,
      '% of matmul peak': 100 * facts['utilisation'],
    }
    for name, facts in found.items()
  ]
  caption = (
    'How fast trainings were, the first steps left out, which compile. The peak is that of large '
    'matmuls, timed on this machine; a backward pass counts as two forward ones.'
  )
  return table(pd.DataFrame(rows), caption) if rows else None


def mean_flops(session: Session, trainer: Trainer) -> float:
  """Returns the mean FLOPs of an example's forward pass in the structures of the sampler."""
  keys = jax.random.split(jax.random.key(0), DRAWS)
  bits = np.asarray(jax.vmap(trainer.sampler, (0, None))(keys, trainer.step // 2))
  return float(session.space.costs(bits.reshape(-1, bits.shape[-1]).astype(bool))[0].mean())
