"""One co-training step of K=4 structures on 4 devices: compiles, and the averaged gradient.

Claim: 100 different lists of 4 structures need exactly one compile, and the gradient that reaches
the pool is within 1e-6 of the mean of the four static structures' gradients.

Method: the trainer on 4 forced host devices, one structure each on its own batch of 64 digits, MLP
of 8 blocks, D=64, H=128; for both collectives. With plain SGD at learning rate 1 the averaged
gradient is what one step takes from the pool; the four static gradients are computed one by one
without the trainer. Compiles of the trainer's program are counted in JAX's own log.
"""

from __future__ import annotations

import logging

import jax
import numpy as np
import optax
import timing

from additive_jax import data, run
from additive_jax.models import MLP
from additive_jax.parallel import collectives, processes
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel.placement import Placement
from additive_jax.train import samplers
from additive_jax.train.recipe import Recipe
from additive_jax.train.state import init_state
from additive_jax.train.trainer import Trainer

BLOCKS, WIDTH, HIDDEN, CLASSES, BATCH, SEED = 8, 64, 128, 10, 64, 0
K, LISTS = 4, 100


class Compiles(logging.Handler):
  """Counts how often XLA compiled the trainer's program."""

  count = 0

  def emit(self, record):
    self.count += 'Finished XLA compilation of jit(steps)' in record.getMessage()


def static_gradient(recipe, variables, structure, x, y):
  def loss(params):
    outputs = run.static(recipe.model, {'params': params}, x, tuple(structure))
    return recipe.task.mean_loss(outputs, y)

  return jax.grad(loss)(variables['params'])


def measure(collective, digits, compiles):
  """Compiles over all lists; the largest difference of the averaged gradient, and the largest
  gradient; seconds of a step."""
  model = MLP(BLOCKS, WIDTH, HIDDEN, CLASSES)
  recipe = Recipe(model, 'classification', optax.sgd(1.0), collective=collective)
  variables = processes.to_host(model.init(jax.random.key(SEED), digits.train.x[:1]))
  mesh = mesh_.make_mesh(K, BATCH)
  assert dict(mesh.shape) == {'structure': K, 'data': 1}
  rng = np.random.default_rng(0)
  lists = [rng.choice(1 << BLOCKS, K, replace=False) for _ in range(LISTS)]
  order = data.Order(len(digits.train), K * BATCH, SEED)
  slots = order.indices(0, 1).reshape(K, BATCH)

  before, times = compiles.count, timing.Times()
  difference = largest = 0.0
  for i, integers in enumerate(lists):
    sampler = samplers.listed(integers, BLOCKS)
    trainer = Trainer(
      recipe,
      digits.train,
      sampler,
      batch_size=BATCH,
      seed=SEED,
      placement=Placement(mesh),
      state=init_state(recipe, variables),
    )
    times.append(timing.seconds(lambda trainer=trainer: trainer.run(1)))
    if i < 3:
      taken = jax.tree.map(
        np.subtract, variables['params'], processes.to_host(trainer.variables['params'])
      )
      alone = [
        static_gradient(recipe, variables, bits, *digits.train[rows])
        for bits, rows in zip(np.asarray(sampler.bits), slots)
      ]
      mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *alone)
      distances = jax.tree.map(lambda a, b: np.abs(a - b).max(), taken, mean)
      difference = max(difference, *jax.tree.leaves(distances))
      largest = max(largest, *(np.abs(leaf).max() for leaf in jax.tree.leaves(mean)))
  return compiles.count - before, difference, largest, times[1:]


def main():
  jax.config.update('jax_num_cpu_devices', K)
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_log_compiles', True)
  compiles = Compiles()
  for name in ('jax._src.dispatch', 'jax._src.interpreters.pxla', 'jax._src.compiler'):
    logging.getLogger(name).propagate = False
    logging.getLogger(name).addHandler(compiles)
  digits = data.load('digits', valid=0.0)
  rows = []
  for collective in collectives.COLLECTIVES:
    count, difference, largest, times = measure(collective, digits, compiles)
    rows.append(
      [
        collective,
        f'{count} ({timing.verdict(count, most=1)})',
        f'{difference:.1e} ({timing.verdict(difference, most=1e-6)})',
        f'{largest:.2f}',
        f'{np.median(times) * 1e3:.1f}',
      ]
    )
  timing.report(
    f'Co-training step: K={K}, {K} devices, n={BLOCKS}, D={WIDTH}, H={HIDDEN}, batch {BATCH} each',
    [
      'collective',
      f'compiles over {LISTS} lists',
      'largest difference from the mean static gradient',
      'largest gradient',
      'ms a call of one step',
    ],
    rows,
  )


if __name__ == '__main__':
  main()
