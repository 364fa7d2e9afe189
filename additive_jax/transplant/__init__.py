"""From small models to a large one and back: pure functions on pytrees of parameters.

`grow` is exact, and its `receipt` shows it on a batch; `grow_optimizer` takes the optimizer's state
along; `merge` is the way back. `narrowed` makes the small model of a large one. `average`, with
`average_optimizer`, `best` and `pack` make one pool of several, `shrink` a small one of a large.
All of them compute on the host in float64, and are not for tracing. `restore.Checkpoints` starts
from what a training left.
"""

from additive_jax.transplant.growth import Receipt, Transplant, grow, merge, receipt
from additive_jax.transplant.moments import average_optimizer, grow_optimizer, restart_schedules
from additive_jax.transplant.narrow import narrowed
from additive_jax.transplant.selection import average, best, pack, shrink
from additive_jax.transplant.wiring import Axis, Wiring, wiring_of

__all__ = [
  'Axis',
  'Receipt',
  'Transplant',
  'Wiring',
  'average',
  'average_optimizer',
  'best',
  'grow',
  'grow_optimizer',
  'merge',
  'narrowed',
  'pack',
  'receipt',
  'restart_schedules',
  'shrink',
  'wiring_of',
]
