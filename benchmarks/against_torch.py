"""Small networks beside an eager PyTorch loop: many trained alone, and one pool co-trained.

Claim: 64 structures trained alone, compiling included, are at least 2.5 times faster than an eager
loop; a co-training step of K=4 structures with half of the gates on is at least 1.4 times faster.

Method: MLP of D=64, H=128, digits, AdamW. Alone: 6 blocks, batch 128, 20 epochs; PyTorch trains a
network of 0, 3 and 6 blocks, which `Population` trains among all 64; the number of blocks in all
structures scales it (a structure has 3 in the mean). Co-training: 8 blocks, 64 examples for each
structure, one device; 40 steps. What is compared is CPU seconds of the process, the least of two or
five tries: one thread a network, so that no core waits. Compiling is told apart.
"""

from __future__ import annotations

import time

import jax
import numpy as np
import optax
import timing

from additive_jax import data
from additive_jax.gates.structure import all_structures
from additive_jax.models import MLP
from additive_jax.parallel.mesh import make_mesh
from additive_jax.parallel.placement import Placement
from additive_jax.train import samplers
from additive_jax.train.population import Population
from additive_jax.train.recipe import Recipe
from additive_jax.train.trainer import Trainer

WIDTH, HIDDEN, CLASSES, EPOCHS, K, STEPS = 64, 128, 10, 20, 4, 40
digits = data.load('digits', valid=0.0)


def least(run, tries):
  """The least CPU seconds of a call."""
  found = []
  for _ in range(tries):
    start = time.process_time()
    jax.block_until_ready(run())
    found.append(time.process_time() - start)
  return min(found)


def alone():
  """CPU seconds of 64 networks: the initial pool, the compile, all of them."""
  steps = data.Order(len(digits.train), 128, 0).steps_for(EPOCHS)
  recipe = Recipe(MLP(6, WIDTH, HIDDEN, CLASSES), 'classification', optax.adamw(1e-3))
  start = time.process_time()
  population = Population(recipe, digits, batch_size=128, seed=0)
  initial = time.process_time() - start
  structures = list(all_structures(6))
  one = lambda: next(population.train(structures[:1], steps)).loss
  first, again = least(one, 1), least(one, 1)
  run = least(lambda: [m.loss for m in population.train(structures, steps)], 1)
  return initial, first - again, run


def cotrain():
  """CPU seconds of a co-training step."""
  recipe = Recipe(MLP(8, WIDTH, HIDDEN, CLASSES), 'classification', optax.adamw(1e-3))
  half = [sum(1 << i for i in range(8) if (i + k) % 2) for k in range(K)]
  mesh = make_mesh(K, 64, jax.devices()[:1])
  trainer = Trainer(
    recipe,
    digits.train,
    samplers.listed(half, 8),
    batch_size=64,
    seed=0,
    placement=Placement(mesh, chunk_steps=STEPS),
  )
  trainer.run(STEPS)
  return least(lambda: trainer.run(STEPS), 5) / STEPS


def torch_seconds(torch):
  """CPU seconds of the 64 networks, and of a co-training step, in PyTorch."""
  torch.set_num_threads(1)
  nn = torch.nn
  x = torch.tensor(np.asarray(digits.train.x)).flatten(1)
  y = torch.tensor(np.asarray(digits.train.y)).long()
  loss = nn.CrossEntropyLoss()

  class Network(nn.Module):
    def __init__(self, blocks):
      super().__init__()
      self.embed, self.head = nn.Linear(x.shape[1], WIDTH), nn.Linear(WIDTH, CLASSES)
      parts = lambda: (
        nn.LayerNorm(WIDTH),
        nn.Linear(WIDTH, HIDDEN),
        nn.GELU(approximate='tanh'),
        nn.Linear(HIDDEN, WIDTH),
      )
      self.blocks = nn.ModuleList(nn.Sequential(*parts()) for _ in range(blocks))
      self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x, on):
      h = self.embed(x)
      for block, is_on in zip(self.blocks, on, strict=True):
        h = h + block(h) if is_on else h
      return self.head(self.norm(h))

  def train(blocks, rows, structures):
    network = Network(blocks)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-4)
    for batches in rows:
      optimizer.zero_grad()
      for on, batch in zip(structures, batches, strict=True):
        (loss(network(x[batch], on), y[batch]) / len(structures)).backward()
      optimizer.step()

  order = data.Order(len(digits.train), 128, 0)
  rows = torch.tensor(np.asarray(order.indices(0, order.steps_for(EPOCHS)))).long()[:, None]
  train(1, rows[:5], [[True]])
  few, some, many = (least(lambda n=n: train(n, rows, [[True] * n]), 2) for n in (0, 3, 6))
  rows = torch.tensor(np.asarray(data.Order(len(digits.train), K * 64, 0).indices(0, STEPS))).long()
  half = [[bool((i + k) % 2) for i in range(8)] for k in range(K)]
  step = least(lambda: train(8, rows.reshape(STEPS, K, 64), half), 5) / STEPS
  return 64 * (few + 2 * some + many) / 4, step


def main():
  initial, compiled, run = alone()
  step = cotrain()
  torch, note = timing.torch()
  torch_alone, torch_step = torch_seconds(torch) if torch is not None else (np.nan, np.nan)
  gain, step_gain = torch_alone / (initial + compiled + run), torch_step / step
  rows = [
    ['64 networks alone: initial pool', f'{initial:.1f}', '', '', ''],
    ['compile', f'{compiled:.1f}', '', '', ''],
    ['training', f'{run:.1f}', f'{torch_alone:.1f}', f'{torch_alone / run:.2f}', ''],
    [
      'all of it',
      f'{initial + compiled + run:.1f}',
      f'{torch_alone:.1f}',
      f'{gain:.2f}',
      timing.verdict(gain, least=2.5),
    ],
    [
      f'co-training step, K={K}, half on',
      f'{step:.5f}',
      f'{torch_step:.5f}',
      f'{step_gain:.2f}',
      timing.verdict(step_gain, least=1.4),
    ],
  ]
  head = ['what', 'CPU s', 'PyTorch, CPU s', 'times PyTorch', 'target']
  timing.report('Beside an eager PyTorch loop', head, rows, *note)


if __name__ == '__main__':
  main()
