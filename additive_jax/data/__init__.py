"""Real data as splits to learn from, to choose by and to judge by, and the order in which training
visits it.

`load('digits')` needs no file and no network; the other kinds are listed in
`additive_jax.data.sources`.
"""

from additive_jax.data.arrays import from_arrays
from additive_jax.data.coding import Coding
from additive_jax.data.held_out import hold_out
from additive_jax.data.iterators import IteratorSplit, from_iterator
from additive_jax.data.order import Order
from additive_jax.data.sources import KINDS, load
from additive_jax.data.splits import ArraySplit, Data, SourceSplit, Split, checked, take
from additive_jax.data.tokenised import from_texts
from additive_jax.data.values import Expected
from additive_jax.data.weights import Weighted

__all__ = [
  'KINDS',
  'ArraySplit',
  'Coding',
  'Data',
  'Expected',
  'IteratorSplit',
  'Order',
  'SourceSplit',
  'Split',
  'Weighted',
  'checked',
  'from_arrays',
  'from_iterator',
  'from_texts',
  'hold_out',
  'load',
  'take',
]
