"""A slot whose loss is a thousand times too large, with clipping and without.

Claim: a finite spike in one slot silences the other slots of its step, and through the moments of
the optimizer those of steps to come; clipping the averaged gradient keeps only the spike's own
direction, while clipping the gradient of each slot (`config.train.slot_clip_norm`) leaves the
others theirs.

Method: a pool of all 64 structures of an MLP (6 blocks, D=32, H=64) on scikit-learn's digits, 4
uniform structures a step, batches of 64, 600 steps, AdamW or SGD with momentum. A slot in 20 has
10⁴ times its loss, drawn by its key. All 64 structures are judged on the test split; means of 3
seeds.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing

from additive_jax.data import load
from additive_jax.models import MLP
from additive_jax.run.evaluate import evaluate_structures
from additive_jax.train.recipe import Recipe, Structures
from additive_jax.train.samplers import Uniform
from additive_jax.train.trainer import Trainer

STEPS, SEEDS, SHARE, HEIGHT = 600, 3, 0.05, 1e4
OPTIMIZERS = {'AdamW': optax.adamw(2e-3), 'SGD, momentum': optax.sgd(0.05, momentum=0.9)}
# What is clipped: the average, or each slot. Norms without spikes are about 1.
CLIPS = {'nothing': (0.0, 0.0), 'the average, at 1': (1.0, 0.0), 'each slot, at 1': (0.0, 1.0)}


@dataclasses.dataclass(frozen=True)
class Spiked(Structures):
  """The loss of structures, of some slots far too large."""

  share: float = 0.0

  def __call__(self, recipe, params, slot):
    loss, facts = super().__call__(recipe, params, slot)
    spike = jax.random.uniform(slot.key) < self.share
    return loss * jnp.where(spike, HEIGHT, 1.0), facts


def main():
  data, model = load('digits'), MLP(6, 32, 64, 10)
  rows = []
  for name, plain in OPTIMIZERS.items():
    for what, (clip, slot_clip) in CLIPS.items():
      optimizer = optax.chain(optax.clip_by_global_norm(clip), plain) if clip else plain
      found = []
      for share in (0.0, SHARE):
        loss = Spiked(share=share)
        recipe = Recipe(model, 'classification', optimizer, loss, slot_clip_norm=slot_clip)
        judged = []
        for seed in range(SEEDS):
          trainer = Trainer(recipe, data.train, Uniform(6, 4), batch_size=64, seed=seed)
          trainer.run(STEPS)
          scores = evaluate_structures(model, trainer.variables, data.test)
          judged.append([scores.loss.mean(), scores.accuracy.mean()])
        found += [f'{value:.3f}' for value in np.mean(judged, 0)]
      rows.append([name, what, *found])
  timing.report(
    f'Spikes: {SHARE:.0%} of slots with {HEIGHT:g} times their loss; means of 64 structures',
    ['optimizer', 'clipped', 'loss', 'accuracy', 'loss, spikes', 'accuracy, spikes'],
    rows,
  )


if __name__ == '__main__':
  main()
