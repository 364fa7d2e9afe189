"""The order of examples: a function of the seed and the step alone."""

import fractions
import math

import numpy as np

from additive_jax.errors import UserError


class Order:
  """Shuffled epochs, one after the other, cut into batches.

  Epoch e is the permutation that sorts `num_examples` words of the counter-based generator Philox
  with key (seed, e). NumPy guarantees that stream for ever, while the algorithm behind
  `Generator.permutation` may change. Step s takes positions `s * batch_size` to `(s + 1) *
  batch_size` of the concatenated epochs: every example is seen equally often, no tail is dropped,
  and a batch may straddle epochs.

  Args:
    num_examples: examples in the split, at least 1.
    batch_size: examples per step, at least 1; it may exceed `num_examples`.
    seed: an integer in [0, 2**64).

  Raises:
    UserError: an argument is out of range.
  """

  def __init__(self, num_examples: int, batch_size: int, seed: int):
    if not 1 <= num_examples < 2**31:
      raise UserError(f'num_examples={num_examples}; expected 1 to 2**31 - 1')
    if batch_size < 1:
      raise UserError(f'batch_size={batch_size}; expected at least 1')
    if not 0 <= seed < 2**64:
      raise UserError(f'seed={seed}; expected 0 to 2**64 - 1')
    self.num_examples = num_examples
    self.batch_size = batch_size
    self.seed = seed
    self._permutations: dict[int, np.ndarray] = {}

  @property
  def steps_per_epoch(self) -> float:
    """Steps that see every example once: `num_examples / batch_size`."""
    return self.num_examples / self.batch_size

  def steps_for(self, epochs: float) -> int:
    """The fewest steps that see at least `epochs` epochs, which may be a fraction."""
    if not (math.isfinite(epochs) and epochs >= 0):
      raise UserError(f'epochs={epochs}; expected a finite number, at least 0')
    # As floats 0.7 epochs of 10 examples exceed 7; as the decimal that was written they don't.
    return math.ceil(fractions.Fraction(str(epochs)) * self.num_examples / self.batch_size)

  def indices(self, start_step: int, num_steps: int) -> np.ndarray:
    """The examples of `num_steps` steps from `start_step`: int32 [num_steps, batch_size].

    `indices(a, n)` equals `indices(0, a + n)[a:]`. Permutations of the epochs last asked for are
    kept, so going on where the previous call stopped shuffles nothing twice.

    Raises:
      UserError: `start_step` or `num_steps` is negative.
    """
    if start_step < 0 or num_steps < 0:
      raise UserError(f'start_step={start_step}, num_steps={num_steps}; expected at least 0')
    begin = start_step * self.batch_size
    end = begin + num_steps * self.batch_size
    flat = np.empty(end - begin, np.int32)
    kept = {}
    position = begin
    while position < end:
      epoch, offset = divmod(position, self.num_examples)
      permutation = self._permutations.get(epoch)
      if permutation is None:
        permutation = self._permutation(epoch)
      count = min(self.num_examples - offset, end - position)
      flat[position - begin : position - begin + count] = permutation[offset : offset + count]
      # Only an epoch that this call did not finish can be asked for by the next.
      kept = {epoch: permutation}
      position += count
    self._permutations = kept or self._permutations
    return flat.reshape(num_steps, self.batch_size)

  def _permutation(self, epoch: int) -> np.ndarray:
    words = np.random.Philox(key=np.array([self.seed, epoch], np.uint64)).random_raw(
      self.num_examples
    )
    return np.argsort(words, kind='stable').astype(np.int32)
