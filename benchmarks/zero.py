"""A training step with the optimizer's state split over 8 devices, with it in host memory, and with
all of the pool in parts along `fsdp` and `tensor`, against one in which each device has a copy.

Claim: over 8 forced devices at most 1/8 plus 1 % of the bytes that a copy takes are on each; with
host offload none between steps; and the pool is the same to the bit. Over 4 devices of `fsdp` or
`tensor` at most 1/4 plus 1 % of parameters, gradients and optimizer, and the pool to rounding.

Method: the trainer on 8 devices with a batch of 16 digits, without further axes 4 structures × 2
parts of the batch; MLP of 4 blocks, D=192, H=768, clipped AdamW, 4 random structures a step, from
one init. Bytes are those of the parts
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
from additive_jax.parallel.mesh import make_mesh
from additive_jax.parallel.placement import Placement
from additive_jax.parallel.zero import bytes_per_device
from additive_jax.train import samplers
from additive_jax.train.recipe import Recipe
from additive_jax.train.trainer import Trainer

BLOCKS, WIDTH, HIDDEN, CLASSES, K, BATCH, DEVICES = 4, 192, 768, 10, 4, 16, 8
STEPS, REPEATS = 3, 9
PLAIN = 'a copy on each'
WAYS = {  # devices along axes over which one network is spread, and the optimizer's state
  PLAIN: ({}, {}),
  'ZeRO': ({}, {'zero': True}),
  'ZeRO, in host memory': ({}, {'zero': True, 'offload': True}),
  'a copy for each, in host memory': ({}, {'offload': True}),
  'fsdp, 4 devices': ({'fsdp_devices': 4}, {}),
  'tensor, 4 devices': ({'tensor_devices': 4}, {}),
  'fsdp, 2 × tensor, 2': ({'fsdp_devices': 2, 'tensor_devices': 2}, {}),
  'fsdp, 4, and ZeRO': ({'fsdp_devices': 4}, {'zero': True}),
}


def main():
  jax.config.update('jax_num_cpu_devices', DEVICES)
  jax.config.update('jax_platforms', 'cpu')
  train = data.load('digits', valid=0.0).train
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  recipe = Recipe(MLP(BLOCKS, WIDTH, HIDDEN, CLASSES), 'classification', optimizer)
  sampler = samplers.make_sampler('uniform', BLOCKS, K)
  trainers = {}
  for name, (spread, kept) in WAYS.items():
    placement = Placement(make_mesh(K, BATCH, **spread), chunk_steps=STEPS, **kept)
    trainers[name] = Trainer(recipe, train, sampler, batch_size=BATCH, seed=0, placement=placement)
  runs = {name: lambda t=trainer: t.run(STEPS) for name, trainer in trainers.items()}
  times = timing.alternate(runs, REPEATS)
  pools = {name: processes.to_host(trainer.variables) for name, trainer in trainers.items()}
  sizes = {name: bytes_per_device(trainer.sharded_state) for name, trainer in trainers.items()}
  copy = max(sizes[PLAIN]['optimizer'].device.values())
  rows = []
  for name, measured in sizes.items():
    here, there = (max(b.values()) for b in measured['optimizer'])
    apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), pools[name], pools[PLAIN])
    spread, kept = WAYS[name]
    parts = DEVICES if kept.get('zero') else int(np.prod(list(spread.values()) or [1]))
    limit = 0 if kept.get('offload') else 1 / parts + 0.01
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
        f'{max(jax.tree.leaves(apart)):.1e}',
      ]
    )
  timing.report(
    f'States in parts: {DEVICES} devices, K={K}, n={BLOCKS}, D={WIDTH}, H={HIDDEN}, batch {BATCH}',
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
      "largest difference of the pool's numbers",
    ],
    rows,
  )


if __name__ == '__main__':
  main()
