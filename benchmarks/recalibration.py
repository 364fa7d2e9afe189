"""How well a pool with BatchNorms ranks its structures, by stored and by recalibrated statistics.

Claim: with statistics of its own for each structure, Kendall's tau between the losses in one shared
pool and those of the structures trained alone is at least 0.9 of what the noise of the trainings
allows; by the stored statistics of all-on it is far less.

Method: a residual network of six blocks of falling width with BatchNorm on digits, as the README's
of Exp 1. All 64 structures are trained alone from three seeds; one pool for each seed is trained on
random structures for as many epochs as the config of Exp 1. Test loss; mean over the seeds.
"""

from __future__ import annotations

import functools
import sys

import flax.linen as nn
import numpy as np
import optax
import timing
from scipy.stats import kendalltau

import additive_jax as aj
from additive_jax.report import rankings
from additive_jax.train.population import Population
from additive_jax.train.recipe import Recipe
from additive_jax.train.samplers import make_sampler
from additive_jax.train.trainer import Trainer

SEEDS, EPOCHS, POOL_EPOCHS, BATCH = 3, 10, 40, 64
WIDTHS = (128, 64, 32, 16, 8, 4)


class Branch(nn.Module):
  """BatchNorm, a hidden layer of some width, and back."""

  width: int

  @nn.compact
  def __call__(self, h):
    x = nn.relu(nn.Dense(self.width)(aj.models.BatchNorm()(h)))
    return nn.Dense(h.shape[-1])(aj.models.BatchNorm()(x))


class Net(aj.Additive):
  """A residual MLP with BatchNorm, also before its readout."""

  num_classes: int = 10

  def setup(self):
    self.stem = nn.Dense(32)
    self.sites = [Branch(width, name=f'block_{i}') for i, width in enumerate(WIDTHS)]
    self.norm, self.head = aj.models.BatchNorm(), nn.Dense(self.num_classes)

  def embed(self, x):
    """Returns the stream."""
    return self.stem(x.reshape(len(x), -1))

  def readout(self, h):
    """Returns logits."""
    return self.head(self.norm(h))


def main():
  data, model = aj.data.load('digits'), Net()
  structures = [str(structure) for structure in aj.all_structures(len(WIDTHS))]
  steps = len(data.train) // BATCH
  test = data.test.x, data.test.y
  recipe = lambda epochs: Recipe(
    model, 'classification', optax.adamw(optax.cosine_decay_schedule(3e-3, epochs * steps))
  )
  alone, stored, own = [], [], []
  for seed in range(SEEDS):
    population = Population(recipe(EPOCHS), data, batch_size=BATCH, seed=seed)
    losses = {str(m.structure): m.loss for m in population.train(structures, EPOCHS * steps)}
    alone.append([losses[structure] for structure in structures])
    sampler = make_sampler('uniform', len(WIDTHS), 4)
    trainer = Trainer(recipe(POOL_EPOCHS), data.train, sampler, batch_size=BATCH, seed=seed)
    trainer.run(POOL_EPOCHS * steps)
    judge = functools.partial(aj.evaluate_structures, model, trainer.variables, test, structures)
    stored.append(judge().loss)
    own.append(judge(recalibrate=data.train).loss)
  ceiling = rankings.noise_ceiling(np.array(alone)).tau_of_mean
  mean = np.mean(alone, 0)
  rows = []
  for name, losses in (('recalibrated', own), ('stored, of all-on', stored)):
    tau = kendalltau(np.mean(losses, 0), mean).statistic
    share = tau / ceiling
    rows.append([name, f'{tau:.3f}', f'{share:.2f}', f'{np.mean(losses):.3f}'])
  share = float(rows[0][2])
  timing.report(
    f'Ranks of {len(structures)} structures of a BatchNorm network, {SEEDS} seeds',
    ['statistics', "Kendall's tau", 'of the ceiling', 'mean test loss'],
    rows,
    f'Noise ceiling {ceiling:.3f}; trained alone: mean test loss {mean.mean():.3f}.',
    f'Recalibrated: {share:.2f} of the ceiling ({timing.verdict(share, least=0.9)}).',
  )


if __name__ == '__main__':
  sys.exit(main())
