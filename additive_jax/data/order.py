"""The order of examples: a function of the seed and the step alone."""

from __future__ import annotations

import fractions
import math

import numpy as np
from jaxtyping import Int32

from additive_jax.errors import UserError, checked_seed, checked_size


class Order:
  """Shuffled epochs, one after the other, cut into batches.

  Epoch e is the permutation that sorts `num_examples` words of the counter-based generator Philox
  with key (seed, e). NumPy guarantees that stream for ever, while the algorithm behind
  `Generator.permutation` may change. Every example is seen equally often, no tail is dropped, and a
  batch may straddle epochs; 5 examples in batches of 3:

    epoch    0 0 0 0 0 1 1 1 1 1 2 …
    example  3 0 4 1 2 2 4 0 3 1 0 …
    step     0 0 0 1 1 1 2 2 2 3 3 …

  >>> order = Order(num_examples=5, batch_size=3, seed=0)
  >>> bool((order.indices(1, 2) == order.indices(0, 3)[1:]).all())
  True

  Args:
    num_examples: examples in the split, at least 1.
    batch_size: examples per step, at least 1; it may exceed `num_examples`.
    seed: an integer in [0, 2**32).

  Raises:
    UserError: an argument is out of range.
  """

  def __init__(self, num_examples: int, batch_size: int, seed: int):
    if not 1 <= num_examples < 2**31:
      raise UserError(f'num_examples={num_examples}; expected 1 to 2**31 - 1')
    self.num_examples = num_examples
    self.batch_size = checked_size(batch_size, 'batch_size')
    self.seed = checked_seed(seed)
    self._permutations: dict[int, Int32[np.ndarray, 'N']] = {}

  def steps_for(self, epochs: float) -> int:
    """Returns the fewest steps that see at least `epochs` epochs, which may be a fraction.

    >>> Order(num_examples=5, batch_size=3, seed=0).steps_for(1.5)
    3
    """
    if not (math.isfinite(epochs) and epochs >= 0):
      raise UserError(f'epochs={epochs}; expected a finite number, at least 0')
    # As floats 0.7 epochs of 10 examples exceed 7; as the decimal that was written they don't.
    return math.ceil(fractions.Fraction(str(epochs)) * self.num_examples / self.batch_size)

  def indices(self, start_step: int, num_steps: int) -> Int32[np.ndarray, 'steps batch']:
    """Returns the examples of `num_steps` steps from `start_step`.

    Permutations of the epochs last asked for are kept, so going on where the previous call stopped
    shuffles nothing twice.

    Raises:
      UserError: `start_step` or `num_steps` is negative.
    """
    if start_step < 0 or num_steps < 0:
      raise UserError(f'start_step={start_step}, num_steps={num_steps}; expected at least 0')
    if num_steps == 0:
      return np.empty((0, self.batch_size), np.int32)
    start = start_step * self.batch_size
    stop = start + num_steps * self.batch_size
    parts = []
    for epoch in range(start // self.num_examples, (stop - 1) // self.num_examples + 1):
      if epoch not in self._permutations:
        # Only an epoch that this call does not finish can be asked for by the next.
        self._permutations = {epoch: self._permutation(epoch)}
      begin = epoch * self.num_examples
      parts.append(self._permutations[epoch][max(start - begin, 0) : stop - begin])
    return np.concatenate(parts).reshape(num_steps, self.batch_size)

  def _permutation(self, epoch: int) -> Int32[np.ndarray, 'N']:
    philox = np.random.Philox(key=np.array([self.seed, epoch], np.uint64))
    return np.argsort(philox.random_raw(self.num_examples), kind='stable').astype(np.int32)
