"""Which device of a pipeline does what in which tick, and how much of that is idle.

With P devices and R repeats the sites of a network are cut into P·R stages, and stage g lies on
device g mod P: with R = 1 (GPipe) a device holds one stage, with more (circular) several that are
not neighbours. Of M microbatches P at a time go around the devices R times, so that a stream which
leaves the last device is what the first one works on next, and no buffer is needed between rounds.

Sources: GPipe, Huang et al. 2019 (arXiv:1811.06965); several stages per device, Narayanan et al.
2021 (arXiv:2104.04473), section 2.2.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Array, Bool, Int

from additive_jax.errors import UserError

SCHEDULES = ('gpipe', 'circular')

Integers = int | Int[Array | np.ndarray, '...']
Bools = bool | Bool[Array | np.ndarray, '...']


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """How sites and batches are laid out over the mesh axis `pipe`.

  Attributes:
    devices: P, at least 2.
    microbatches: M, into which a device's batch of a slot is cut.
    schedule: 'gpipe', or 'circular': the microbatches go around P at a time, R times.
    repeats: R, stages on each device; 1 for 'gpipe'.
    remat: whether the backward pass runs each stage again from its input alone; else the results of
      its matmuls are kept, for which ticks without work keep zeros.

  >>> pipeline = Pipeline(devices=2, microbatches=4, schedule='circular', repeats=3)
  >>> pipeline.stages, pipeline.ticks
  (6, 13)
  """

  devices: int
  microbatches: int
  schedule: str = 'gpipe'
  repeats: int = 1
  remat: bool = True

  def __post_init__(self):
    if self.schedule not in SCHEDULES:
      known = ', '.join(SCHEDULES)
      raise UserError(f'pipe_schedule {self.schedule!r}: expected one of {known}')
    for name, value, least in (
      ('pipe_devices', self.devices, 2),
      ('microbatches', self.microbatches, 1),
      ('pipe_repeats', self.repeats, 1),
    ):
      if value < least:
        raise UserError(f'{name} {value} of a pipeline: expected at least {least}')
    if self.schedule == 'gpipe' and self.repeats != 1:
      raise UserError(f'pipe_repeats {self.repeats} of gpipe: expected 1, or circular')
    if self.schedule == 'circular' and self.microbatches % self.devices:
      raise UserError(
        f'{self.microbatches} microbatches around {self.devices} pipe_devices: expected a multiple '
        f'of {self.devices}, or gpipe'
      )

  @property
  def stages(self) -> int:
    """P·R, the stages that the sites are cut into."""
    return self.devices * self.repeats

  @property
  def ticks(self) -> int:
    """Of one pass through all stages."""
    return self.microbatches * self.repeats + self.devices - 1

  def turn(self, tick: Integers, device: Integers) -> tuple[Bools, Integers, Integers]:
    """Returns what a device does in a tick: whether it works, and if so on which of its stages
    (0 to R − 1) and which microbatch.

    Args:
      tick, device: integers, traced or not, or arrays of them that broadcast.

    >>> Pipeline(devices=2, microbatches=3).turn(tick=2, device=1)
    (True, 0, 1)
    """
    done = tick - device
    block, within = done // self.stages, done % self.stages
    busy = (done >= 0) & (done < self.microbatches * self.repeats)
    return busy, within // self.devices, block * self.devices + within % self.devices


def bubble(pipeline: Pipeline) -> float:
  """Returns the share of all ticks of all devices that is idle, (P − 1)/(M·R + P − 1).

  >>> bubble(Pipeline(devices=2, microbatches=3))
  0.25
  """
  return (pipeline.devices - 1) / pipeline.ticks


def microbatches(pipeline: Pipeline) -> Int[np.ndarray, 'P ticks']:
  """Returns the microbatch that each device works on in each tick; −1 where it is idle.

  Each row is a device, each column a tick. A circular pipeline takes its microbatches around again:

  >>> microbatches(Pipeline(devices=2, microbatches=3))
  array([[ 0,  1,  2, -1],
         [-1,  0,  1,  2]])
  >>> microbatches(Pipeline(devices=2, microbatches=2, schedule='circular', repeats=2))
  array([[ 0,  1,  0,  1, -1],
         [-1,  0,  1,  0,  1]])
  """
  busy, _, number = pipeline.turn(np.arange(pipeline.ticks), np.arange(pipeline.devices)[:, None])
  return np.where(busy, number, -1)
