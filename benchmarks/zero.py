"""A training step with the optimizer's state split over 8 devices, and with it in host memory,
against one in which each device has a copy.

Claim: over 8 forced devices at most 1/8 plus 1 % of the bytes that a copy takes are on each; with
host offload none between steps; and the pool is the same to the bit.

Method: the trainer on a mesh of 4 structures × 2 parts of a batch of 16 digits; MLP of 4 blocks,
D=192, H=768, clipped AdamW, 4 random structures a step, from one init. Bytes are those of the parts
that lie on a device, measured from the arrays. All compiled, then run in turn, a call of some steps
each. Forced host devices share the cores and their memory: the ratios of times say little of a mesh
of accelerators, where collectives and transfers cost something else.
"""

from __future__ import annotations

import jax
import numpy as np
import optax
import timing

from additive_jax import data
from additive_jax.models import MLP
from additive_jax.parallel import processes
from additive_jax.parallel.placement import Placement
from additive_jax.parallel.zero import bytes_per_device
from additive_jax.train import samplers
from additive_jax.train.recipe import Recipe
from additive_jax.train.trainer import Trainer

BLOCKS, WIDTH, HIDDEN, CLASSES, K, BATCH, DEVICES = 4, 192, 768, 10, 4, 16, 8
STEPS, REPEATS = 3, 9
PLAIN = 'a copy on each'
WAYS = {
  PLAIN: Placement(chunk_steps=STEPS),
  'ZeRO': Placement(chunk_steps=STEPS, zero=True),
  'ZeRO, in host memory': Placement(chunk_steps=STEPS, zero=True, offload=True),
  'a copy for each, in host memory': Placement(chunk_steps=STEPS, offload=True),
}


def main():
  jax.config.update('jax_num_cpu_devices', DEVICES)
  jax.config.update('jax_platforms', 'cpu')
  train = data.load('digits').train
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  recipe = Recipe(MLP(BLOCKS, WIDTH, HIDDEN, CLASSES), 'classification', optimizer)
  sampler = samplers.make_sampler('uniform', BLOCKS, K)
  trainers = {
    name: Trainer(recipe, train, sampler, batch_size=BATCH, seed=0, placement=placement)
    for name, placement in WAYS.items()
  }
  runs = {name: lambda t=trainer: t.run(STEPS) for name, trainer in trainers.items()}
  times = timing.alternate(runs, REPEATS)
  pools = {name: processes.to_host(trainer.variables) for name, trainer in trainers.items()}
  found = {name: bytes_per_device(trainer.sharded_state) for name, trainer in trainers.items()}
  copy = max(found[PLAIN]['optimizer'].device.values())
  rows = []
  for name, measured in found.items():
    here, there = (max(b.values()) for b in measured['optimizer'])
    equal = jax.tree.map(np.array_equal, pools[name], pools[PLAIN])
    limit = 0 if 'host' in name else 1 / DEVICES + 0.01
    share = here / copy
    rows.append(
      [
        name,
        f'{times[name].best / STEPS * 1e3:.1f}',
        f'{times[name].spread:.0%}',
        f'{timing.ratio(times, name, PLAIN):.2f}',
        *(f'{max(measured[kind].device.values()):,}' for kind in ('parameters', 'gradients')),
        f'{here:,}',
        f'{there:,}',
        f'{share:.4f}' + ('' if name == PLAIN else f' ({timing.verdict(share, most=limit)})'),
        'yes' if all(jax.tree.leaves(equal)) else 'no',
      ]
    )
  timing.report(
    f'ZeRO: {DEVICES} devices, K={K}, n={BLOCKS}, D={WIDTH}, H={HIDDEN}, batch {BATCH} each',
    [
      "the optimizer's state",
      'best, ms a step',
      'spread',
      'of a copy on each (median)',
      'bytes on a device: parameters',
      'gradients',
      "optimizer's state",
      'in host memory for it',
      'share of a copy on the device',
      'same pool to the bit',
    ],
    rows,
  )


if __name__ == '__main__':
  main()
