"""Training on examples that are read as needed, with and without reading ahead, against the same
examples in memory.

Claim: reading overlaps with computing. Where reading waits (a disk, a network) a step takes about
the longer of the two, not their sum. Where reading computes (decoding), it takes cores from the
steps on a CPU, and none on an accelerator.

Method: MLP of 4 blocks, D=128, H=512, 4 uniform structures a step, batch 64, chunks of 5 steps, one
device. The reader waits as long as the steps of a chunk take, as measured in memory, or decodes
JPEGs of 64×64. All compiled, then run in turn, a call of 20 steps each; the least of the repeats.
The pools are the same to the bit.
"""

from __future__ import annotations

import io
import time

import jax
import numpy as np
import optax
import timing
from PIL import Image

from additive_jax.data import ArraySplit, SourceSplit
from additive_jax.models import MLP
from additive_jax.parallel.mesh import make_mesh
from additive_jax.parallel.placement import Placement
from additive_jax.train import samplers
from additive_jax.train.recipe import Recipe
from additive_jax.train.trainer import Trainer

BLOCKS, WIDTH, HIDDEN, CLASSES, K, BATCH, SIDE = 4, 128, 512, 10, 4, 64, 16
EXAMPLES, CHUNK, STEPS, REPEATS = 2048, 5, 20, 7


def encoded(x):
  files = []
  for image in x:
    file = io.BytesIO()
    Image.fromarray(image).resize((64, 64)).save(file, 'JPEG')
    files.append(file.getvalue())
  return files


def trainer(train, ahead):
  recipe = Recipe(MLP(BLOCKS, WIDTH, HIDDEN, CLASSES), 'classification', optax.adamw(1e-3))
  sampler = samplers.make_sampler('uniform', BLOCKS, K)
  placement = Placement(make_mesh(1, 1, jax.devices()[:1]), chunk_steps=CHUNK)
  made = Trainer(recipe, train, sampler, batch_size=BATCH, seed=0, placement=placement)
  made._feed._ahead = ahead
  return made


def main():
  jax.config.update('jax_platforms', 'cpu')
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (EXAMPLES, SIDE, SIDE, 3)).astype(np.uint8)
  x, y = pixels.astype(np.float32) / 255, rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)
  near = trainer(ArraySplit(x, y), False)
  near.run(STEPS)
  chunk = min(timing.seconds(lambda: near.run(STEPS)['loss']) for _ in range(3)) * CHUNK / STEPS
  files = encoded(pixels)

  def waits(indices):
    time.sleep(chunk * len(indices) / (CHUNK * K * BATCH))
    return x[indices], y[indices]

  def decodes(indices):
    for i in indices[:: K * 4]:  # about as long as the steps
      np.asarray(Image.open(io.BytesIO(files[i])).convert('RGB'))
    return x[indices], y[indices]

  trainers = {'in memory': trainer(ArraySplit(x, y), False)}
  for name, gather in (('waiting', waits), ('decoding', decodes)):
    for ahead in (False, True):
      way = f'{name}, {"read ahead" if ahead else "one after the other"}'
      trainers[way] = trainer(SourceSplit(EXAMPLES, gather), ahead)
  runs = {name: lambda t=made: t.run(STEPS)['loss'] for name, made in trainers.items()}
  times = timing.alternate(runs, REPEATS)
  pools = [jax.tree.map(np.asarray, made.variables) for made in trainers.values()]
  for pool in pools[1:]:
    jax.tree.map(np.testing.assert_array_equal, pools[0], pool)
  base = times['in memory'].best
  print(f'| {STEPS} steps | ms a step | of those in memory |\n| --- | --- | --- |')
  for name, taken in times.items():
    print(f'| {name} | {1000 * taken.best / STEPS:.1f} | {taken.best / base:.2f} |')
  for name in ('waiting', 'decoding'):
    apart, ahead = (times[f'{name}, {way}'].best for way in ('one after the other', 'read ahead'))
    print(f'{name}: reading ahead takes {ahead / apart:.2f} of the time')


if __name__ == '__main__':
  main()
