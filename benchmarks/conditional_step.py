"""A conditional training step by the number of gates that are on.

Claim: an off gate costs nothing, forward or backward, though its value is data: with half the gates
on a step takes at most 0.6 of the all-on step, in the same compiled program.

Method: the trainer's own `train_step` (one structure a step, AdamW on the whole pool) for an MLP of
12 blocks, D=128, H=512, batch of 256 random examples. The gates that are on are spread evenly over
the depth. Bursts of 3 steps are timed in turn.
"""

from __future__ import annotations

import functools

import jax
import numpy as np
import optax
import timing

from additive_jax.models import MLP
from additive_jax.train.gradients import Slots
from additive_jax.train.recipe import Recipe
from additive_jax.train.state import init_state, train_step

BLOCKS, WIDTH, HIDDEN, CLASSES, BATCH = 12, 128, 512, 10, 256
BURST, REPEATS = 3, 15


def main():
  rng = np.random.default_rng(0)
  batch = (
    rng.normal(size=(1, BATCH, 64)).astype(np.float32),
    rng.integers(CLASSES, size=(1, BATCH)),
  )
  batch = jax.device_put(batch)
  recipe = Recipe(MLP(BLOCKS, WIDTH, HIDDEN, CLASSES), 'classification', optax.adamw(1e-3))
  step = jax.jit(functools.partial(train_step, recipe), donate_argnums=0)
  state = [init_state(recipe, recipe.model.init(jax.random.key(0), batch[0][0]))]

  def burst(bits):
    for _ in range(BURST):
      state[0], metrics = step(state[0], Slots(bits, *batch))
    return metrics

  runs = {}
  for num_on in (0, 3, 6, 9, 12):
    bits = np.diff(np.arange(BLOCKS + 1) * num_on // BLOCKS, axis=0)[None].astype(bool)
    assert bits.sum() == num_on
    runs[num_on] = functools.partial(burst, bits)
  times = timing.alternate(runs, REPEATS)
  assert step._cache_size() == 1
  half = timing.ratio(times, 6, 12)
  timing.report(
    f'Conditional step: {BLOCKS} gates, D={WIDTH}, H={HIDDEN}, B={BATCH}, AdamW, one program',
    ['gates on', 'best, ms a step', 'spread', 'of the all-on step'],
    [
      [
        num_on,
        f'{found.best / BURST * 1e3:.1f}',
        f'{found.spread:.0%}',
        f'{timing.ratio(times, num_on, 12):.2f}',
      ]
      for num_on, found in times.items()
    ],
    f'Half the gates on: {half:.2f} of the all-on step (median of {REPEATS} turns; '
    f'{timing.verdict(half, most=0.6)}).',
  )


if __name__ == '__main__':
  main()
