"""Real data as a train and a test split, and the order in which training visits it.

`load('digits')` needs no file and no network; the other kinds are listed in
`additive_jax.data.sources`.
"""

from additive_jax.data.order import Order
from additive_jax.data.sources import KINDS, load
from additive_jax.data.splits import ArraySplit, Data, SourceSplit, Split, checked, take
from additive_jax.data.values import Expected

__all__ = [
  'KINDS',
  'ArraySplit',
  'Data',
  'Expected',
  'Order',
  'SourceSplit',
  'Split',
  'checked',
  'load',
  'take',
]
