"""The order of examples."""

import numpy as np
import pytest

from additive_jax.data import Order
from additive_jax.errors import UserError


@pytest.mark.parametrize(('num_examples', 'batch_size'), [(10, 5), (10, 3), (10, 1), (7, 20)])
def test_any_part_equals_the_part_of_the_whole(num_examples, batch_size):
  whole = Order(num_examples, batch_size, seed=3).indices(0, 23)
  assert whole.dtype == np.int32
  assert whole.shape == (23, batch_size)
  order = Order(num_examples, batch_size, seed=3)
  # Forwards, backwards and across epochs, on one object with its kept permutations.
  for start, count in ((0, 5), (5, 9), (14, 9), (2, 3), (22, 1), (0, 23), (4, 0)):
    np.testing.assert_array_equal(order.indices(start, count), whole[start : start + count])
    fresh = Order(num_examples, batch_size, seed=3)
    np.testing.assert_array_equal(fresh.indices(start, count), whole[start : start + count])


@pytest.mark.parametrize('batch_size', [1, 4, 9, 25])
def test_every_epoch_is_a_permutation(batch_size):
  order = Order(9, batch_size, seed=0)
  epochs = order.indices(0, 9 * 4).ravel()[: 9 * 4].reshape(4, 9)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(9), (4, 1)))
  assert len({tuple(epoch) for epoch in epochs}) == 4


def test_seeds_differ_and_the_order_never_changes():
  assert not np.array_equal(Order(100, 100, 0).indices(0, 1), Order(100, 100, 1).indices(0, 1))
  # Written down once: a run begun with an older release must go on with the same examples.
  expected = [[7, 1, 6, 4, 3, 5, 0, 2], [4, 5, 3, 0, 2, 7, 1, 6]]
  np.testing.assert_array_equal(Order(8, 8, 42).indices(0, 2), expected)


def test_positions_are_equally_likely():
  firsts = [Order(5, 1, seed).indices(0, 1)[0, 0] for seed in range(1000)]
  # 200 of each are expected with a deviation of 12.6: five deviations.
  assert np.abs(np.bincount(firsts, minlength=5) - 200).max() < 64


def test_going_on_shuffles_nothing_twice(monkeypatch):
  order = Order(10, 3, 0)
  calls = []
  original = Order._permutation
  monkeypatch.setattr(
    Order, '_permutation', lambda self, epoch: calls.append(epoch) or original(self, epoch)
  )
  for start in range(20):
    order.indices(start, 1)
  assert calls == [0, 1, 2, 3, 4, 5]


def test_steps():
  order = Order(10, 4, 0)
  assert [order.steps_for(epochs) for epochs in (0, 1, 2, 0.5, 3)] == [0, 3, 5, 2, 8]
  # In floating point 0.7 * 10 is a little over 7, which would be 8 steps.
  assert Order(10, 1, 0).steps_for(0.7) == 7


@pytest.mark.parametrize(
  ('call', 'expected'),
  [
    (lambda: Order(0, 1, 0), 'num_examples=0'),
    (lambda: Order(1, 0, 0), 'batch_size 0: expected at least 1'),
    (lambda: Order(1, 1, -1), 'seed -1: expected'),
    (lambda: Order(1, 1, 2**32), 'seed 4294967296: expected an integer from 0'),
    (lambda: Order(1, 1, 0).indices(-1, 1), 'start_step=-1'),
    (lambda: Order(1, 1, 0).indices(0, -1), 'num_steps=-1'),
    (lambda: Order(1, 1, 0).steps_for(-0.5), 'epochs=-0.5'),
    (lambda: Order(1, 1, 0).steps_for(float('nan')), 'epochs=nan'),
  ],
)
def test_bad_input(call, expected):
  with pytest.raises(UserError, match=expected):
    call()
