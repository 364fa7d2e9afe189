"""The cost model of ranking and co-training, against what is counted and measured at small sizes.

Claim: FLOPs, bytes on a device, bytes that move, and the seconds that follow from FLOPs at one rate
are within 15 % of what XLA counts and this machine takes.

Method: ranking all 2^n networks of an MLP (n = 8 to 14 blocks, D=128, H=512, B=256) and of a
transformer (4 to 7 layers, n = 8 to 14 gates, D=64, H=256, T=32, B=32); a step of co-training of
both with K = 1 to 8 structures, all gates on. CPU seconds of the process, least of some repeats in
turns. The rate in FLOP/s is that of one size of each (marked), all other sizes are predicted from
it. Bytes are those of `aj.plan` on 8 forced host devices. `--plans` makes these alone, `--billion`
those of a pool of 1.2·10⁹ parameters (each some minutes).
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8')

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing

import additive_jax as aj
from additive_jax.data import ArraySplit
from additive_jax.models import MLP, Transformer
from additive_jax.parallel.mesh import exact_mesh
from additive_jax.parallel.placement import Placement
from additive_jax.run.walk import walk
from additive_jax.train import samplers
from additive_jax.train.recipe import Recipe
from additive_jax.train.trainer import Trainer

CLOSE, REPEATS, STEPS = 0.15, 3, 4
HEAD = ['what', 'size', 'predicted', 'found', 'predicted / found', f'within {CLOSE:.0%}']
random = np.random.default_rng(0)
ROWS = random.normal(size=(256, 64)).astype(np.float32), np.arange(256, dtype=np.int32) % 10
TEXT = tuple(random.integers(64, size=(2, 32, 32)).astype(np.uint8))


def mlp(gates):
  return MLP(gates, 128, 512, 10), ROWS, 'classification'


def transformer(gates):
  sizes = {'num_heads': 4, 'hidden': 256, 'num_classes': 64, 'num_tokens': 64, 'max_tokens': 32}
  return Transformer(gates // 2, 64, **sizes, causal=True), TEXT, 'language'


NETWORKS = {'MLP': mlp, 'transformer': transformer}


def row(what, size, predicted, found, note=''):
  ratio = predicted / found
  verdict = note or ('yes' if abs(ratio - 1) <= CLOSE else 'no')
  return [what, size, f'{predicted:.4g}', f'{found:.4g}', f'{ratio:.3f}', verdict]


def predicted_seconds(what, flops, runs, at):
  """Rows of CPU seconds, predicted by the rate of the size `at`."""
  seconds = timing.processor_seconds(runs, REPEATS)
  rate = flops[at] / seconds[at]
  print(f'{what}: {rate / 1e9:.1f} GFLOP a CPU second', flush=True)
  return [
    row(f'{what}, CPU s', size, flops[size] / rate, seconds[size], 'gives the rate' * (size == at))
    for size in runs
  ]


def ranking(name):
  """Ranking all networks of 8 to 14 gates."""
  flops, runs = {}, {}
  for gates in (8, 10, 12, 14):
    model, (x, y), task = NETWORKS[name](gates)
    pool = jax.jit(model.init)(jax.random.key(0), x)
    call = lambda model=model, pool=pool, x=x, y=y, task=task: aj.evaluate_structures(
      model, pool, (x, y), task=task, batch_size=len(x)
    )
    size = f'n = {gates}'
    flops[size] = walk(model, x).flops * len(x)
    call()
    runs[size] = call
  return predicted_seconds(f'ranking 2^n, {name}', flops, runs, 'n = 12')


def cotraining(name):
  """Steps of 1 to 8 structures on one device."""
  flops, runs, rows = {}, {}, []
  for gates, slots in ((8, 1), (8, 2), (8, 4), (8, 8), (14, 4)):
    model, (x, y), task = NETWORKS[name](gates)
    recipe, size = Recipe(model, task, optax.adamw(1e-3)), f'n = {gates}, K = {slots}'
    sampler = samplers.listed(['1' * gates], gates, slots)
    placement = Placement(exact_mesh({}), chunk_steps=STEPS)
    trainer = Trainer(
      recipe, ArraySplit(x, y), sampler, batch_size=len(x), seed=0, placement=placement
    )
    trainer.warm_up()
    runs[size] = lambda trainer=trainer: trainer.run(STEPS)['loss']
    found = aj.plan(recipe, sampler, x, y, {})
    flops[size] = STEPS * found.forecast.flops
    rows.append(row(f'step, {name}: FLOPs', size, found.forecast.flops, found.flops))
    rows.append(row(f'step, {name}: bytes', size, found.forecast.total, found.held.total))
  return rows + predicted_seconds(f'{STEPS} steps, {name}', flops, runs, 'n = 8, K = 4')


def plans():
  """A pool of 21 million parameters on 8 devices."""
  sizes = {'num_heads': 8, 'hidden': 2048, 'num_classes': 4000, 'num_tokens': 4000}
  model = Transformer(4, 512, **sizes, causal=True, positions='rope', unit='swiglu')
  tokens, rows = jax.ShapeDtypeStruct((8, 512), jnp.int32), []
  sampler = samplers.make_sampler('uniform', 8, 2)
  for mesh, recipe_options, options in (
    ({'fsdp': 8}, {}, {}),
    ({'fsdp': 8}, {'dtype': 'bfloat16'}, {}),
    ({'structure': 2, 'fsdp': 4}, {}, {}),
    ({'data': 2, 'fsdp': 4}, {}, {}),
    ({'structure': 2, 'data': 4}, {}, {}),
    ({'structure': 2, 'data': 4}, {}, {'zero': True}),
  ):
    recipe = Recipe(model, 'language', optax.adamw(1e-3), **recipe_options)
    found = aj.plan(recipe, sampler, tokens, tokens, mesh, **options)
    guess, size = found.forecast, ' '.join(map(str, (mesh, *recipe_options.values(), *options)))
    rows.append(row('plan: bytes', size, guess.total, found.held.total))
    moved = sum(guess.moved.values()), sum(found.moved.values())
    rows.append(row('plan: bytes received', size, *moved))
    rows.append(row('plan: FLOPs', size, guess.flops, found.flops))
    print(found, flush=True)
  return rows


def billion():
  """A pool of the shape of Llama 3.2 1B, with full heads and 32,000 tokens, on 8 devices."""
  sizes = {'num_heads': 32, 'hidden': 8192, 'num_classes': 32_000, 'num_tokens': 32_000}
  model = Transformer(16, 2048, **sizes, causal=True, positions='rope', unit='swiglu')
  tokens, sampler = (
    jax.ShapeDtypeStruct((8, 2048), jnp.int32),
    samplers.make_sampler('uniform', 32, 2),
  )
  for mesh, dtype in (
    ({'fsdp': 8}, 'float32'),
    ({'fsdp': 8}, 'bfloat16'),
    ({'structure': 2, 'fsdp': 4}, 'float32'),
    ({'data': 2, 'fsdp': 4}, 'float32'),
  ):
    recipe = Recipe(model, 'language', optax.adamw(1e-3), dtype=dtype)
    print(dtype, aj.plan(recipe, sampler, tokens, tokens, mesh), '', sep='\n', flush=True)


def main():
  if '--billion' in sys.argv:
    billion()
    return
  rows = plans()
  if '--plans' not in sys.argv:
    rows += [row for name in NETWORKS for part in (ranking, cotraining) for row in part(name)]
  far = sum(one[-1] == 'no' for one in rows)
  timing.report('Cost model', HEAD, rows, f'{len(rows) - far} of {len(rows)} within {CLOSE:.0%}.')


if __name__ == '__main__':
  main()
