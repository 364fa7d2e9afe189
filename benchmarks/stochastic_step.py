"""A training step with random gates at mean keep rate 0.5, against the full step.

Claim: a random structure per device and step (conditional) takes at most 0.6 of the step with all
gates on, in the same compiled program; a random structure per example (each gate on a random half
of the batch) at most 0.65 of the step of the dense network, which is a program without gates.

Method: the trainer's own `train_step` (one structure a step, AdamW on the whole pool) for a
causal transformer of 6 layers, D=128, H=512, 4 heads, T=64, batch of 64 random sequences of
bytes. The conditional structures have 6 of the 12 gates on: 3 of attention and 3 of feed-forward,
another choice each step. Bursts are timed in turn.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing

from additive_jax.gates.subsets import Subsets
from additive_jax.models import Transformer
from additive_jax.models.additive import gate_names
from additive_jax.train.gradients import Slots
from additive_jax.train.losses import PerSample
from additive_jax.train.recipe import Recipe
from additive_jax.train.state import init_state, train_step

LAYERS, WIDTH, HEADS, HIDDEN, TOKENS, BATCH, BYTES = 6, 128, 4, 512, 64, 64, 256
BURST, REPEATS = 2, 9


def main():
  rng = np.random.default_rng(0)
  batch = jax.device_put(tuple(rng.integers(BYTES, size=(2, 1, BATCH, TOKENS)).astype(np.uint8)))
  model = Transformer(LAYERS, WIDTH, HEADS, HIDDEN, BYTES, num_tokens=BYTES, causal=True)
  num_gates = len(gate_names(model))
  optimizer = optax.adamw(1e-3)
  conditional = Recipe(model, 'language', optimizer)
  whole, half = (
    Recipe(model, 'language', optimizer, PerSample(subsets=Subsets(((rate,) * num_gates,))))
    for rate in (1.0, 0.5)
  )
  steps = {
    recipe: jax.jit(functools.partial(train_step, recipe), donate_argnums=0)
    for recipe in (conditional, whole, half)
  }
  state = [init_state(conditional, model.init(jax.random.key(0), batch[0][0]))]
  key = jax.random.key(1)

  def burst(recipe, make_bits):
    for i in range(BURST):
      keys = jax.random.split(jax.random.fold_in(key, i), 1)
      state[0], metrics = steps[recipe](state[0], Slots(make_bits(), *batch, keys, jnp.int32(0)))
    return metrics

  def half_on():
    bits = np.zeros((LAYERS, 2), bool)
    for kind in range(2):
      bits[rng.permutation(LAYERS)[: LAYERS // 2], kind] = True
    return bits.reshape(1, -1)

  all_on = lambda: np.ones((1, num_gates), bool)
  runs = {
    'dense': functools.partial(burst, whole, all_on),
    'conditional, all on': functools.partial(burst, conditional, all_on),
    'conditional, half on': functools.partial(burst, conditional, half_on),
    'per sample, half on': functools.partial(burst, half, all_on),
  }
  times = timing.alternate(runs, REPEATS)
  assert steps[conditional]._cache_size() == 1
  by_step = timing.ratio(times, 'conditional, half on', 'conditional, all on')
  by_sample = timing.ratio(times, 'per sample, half on', 'dense')
  timing.report(
    f'Steps with random gates: transformer of {LAYERS} layers, D={WIDTH}, H={HIDDEN}, T={TOKENS}, '
    f'B={BATCH}, AdamW',
    ['step', 'best, ms', 'spread', 'of the dense step', 'of the conditional all-on step'],
    [
      [
        name,
        f'{found.best / BURST * 1e3:.0f}',
        f'{found.spread:.0%}',
        f'{timing.ratio(times, name, "dense"):.2f}',
        f'{timing.ratio(times, name, "conditional, all on"):.2f}',
      ]
      for name, found in times.items()
    ],
    f'Conditional at 0.5: {by_step:.2f} of the all-on step (median of {REPEATS} turns; '
    f'{timing.verdict(by_step, most=0.6)}). Per sample at 0.5: {by_sample:.2f} of the dense step '
    f'({timing.verdict(by_sample, most=0.65)}).',
  )


if __name__ == '__main__':
  main()
