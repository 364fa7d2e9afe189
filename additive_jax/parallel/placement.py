"""How a training runs on devices: nothing in it changes what is computed, but for rounding."""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh

from additive_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Placement:
  """How a training runs on devices.

  Attributes:
    mesh: axes `structure` and `data`, and those over which one network is spread, see `mesh`; None
      takes all devices.
    zero, offload: what each device keeps of the optimizer's state, see `zero.Storage`.
    chunk_steps: the most steps that one call of the compiled program takes.
  """

  mesh: Mesh | None = None
  zero: bool = False
  offload: bool = False
  chunk_steps: int = 100

  def __post_init__(self):
    if self.chunk_steps < 1:
      raise UserError(f'chunk_steps {self.chunk_steps}: expected at least 1')
