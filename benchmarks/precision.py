"""Training in bfloat16 beside float32: the losses of 200 steps, and the memory of a step as XLA
counts it, with pieces of a batch too.

  python benchmarks/precision.py
"""

import argparse
import functools

import jax
import numpy as np
import optax

from additive_jax import data, models
from additive_jax.models.surrounding import in_mode
from additive_jax.parallel.placement import Placement
from additive_jax.run import static
from additive_jax.train import samplers
from additive_jax.train.gradients import Slots, averaged_gradient
from additive_jax.train.recipe import Recipe
from additive_jax.train.slot import Slot
from additive_jax.train.trainer import Trainer

STEPS = 200
WINDOW = 20  # steps over which losses are averaged


def networks():
  """Yields name, data and network."""
  digits = data.load('digits')
  yield 'MLP on digits', digits, models.MLP(4, 64, 128, digits.num_outputs)
  text = data.load('stdlib', sequence_length=32)
  sizes = {'width': 32, 'num_heads': 4, 'hidden': 64, 'num_classes': text.num_outputs}
  tokens = {'num_tokens': text.num_outputs, 'causal': True, 'max_tokens': 32}
  yield 'transformer on stdlib', text, models.Transformer(2, **sizes, **tokens)


def losses(recipe, examples, model):
  """The mean loss of the structures of each step."""
  sampler = samplers.make_sampler('uniform', model.space.num_gates, 2)
  placement = Placement(chunk_steps=50)
  trainer = Trainer(recipe, examples.train, sampler, batch_size=32, seed=0, placement=placement)
  return trainer.run(STEPS)['loss'].mean(1)


def compare():
  """Prints how far the losses in bfloat16 are from those in float32."""
  for name, examples, model in networks():
    recipes = [
      Recipe(model, examples.task, optax.adamw(1e-3), dtype=dtype)
      for dtype in ('float32', 'bfloat16')
    ]
    exact, rounded = (losses(recipe, examples, model) for recipe in recipes)
    means = [curve.reshape(-1, WINDOW).mean(1) for curve in (exact, rounded)]
    apart = np.abs(means[1] / means[0] - 1).max()
    print(
      f'{name}: loss {exact[0]:.3f} → {means[0][-1]:.4f} in float32, {means[1][-1]:.4f} in '
      f'bfloat16; means of {WINDOW} steps at most {100 * apart:.2f} % apart',
      flush=True,
    )


def memory():
  """Prints the bytes that a step needs beside its arguments and results, and those that a piece of
  its batch keeps from the forward to the backward pass."""
  sizes = {'width': 128, 'num_heads': 4, 'hidden': 512, 'num_classes': 256, 'num_tokens': 256}
  model = models.Transformer(6, **sizes, causal=True, max_tokens=128)
  x = jax.ShapeDtypeStruct((32, 128), np.int32)
  params = jax.eval_shape(model.init, jax.random.key(0), x)['params']
  bits = jax.ShapeDtypeStruct((model.space.num_gates,), bool)
  print(f'pool of {megabytes(params)}, a batch of {x.shape[0]} × {x.shape[1]} tokens')

  def plain(bits, params, x, y):
    outputs = static(model, {'params': params}, x, '1' * model.space.num_gates)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()

  def loss(recipe, bits, params, x, y):
    slot = Slot(bits, x, y)
    with in_mode(recipe.mode(slot)):
      return recipe.loss(recipe, params, slot)[0]

  def step(recipe, bits, params, x, y):
    return averaged_gradient(recipe, params, Slots(bits[None], x[None], y[None])).gradient

  ways = {'float32, plain Flax step': (1, plain, jax.grad(plain, argnums=1))}
  for dtype in ('float32', 'bfloat16'):
    for pieces in (1, 4, 8):
      recipe = Recipe(model, 'language', optax.sgd(0.1), dtype=dtype, accumulate=pieces)
      call, take = functools.partial(loss, recipe), functools.partial(step, recipe)
      ways[f'{dtype}, rematerialised, {pieces} pieces'] = (pieces, call, take)
  for name, (pieces, call, take) in ways.items():
    counted = jax.jit(take).lower(bits, params, x, x).compile().memory_analysis()
    part = jax.ShapeDtypeStruct((x.shape[0] // pieces, x.shape[1]), x.dtype)
    temporary = f'{counted.temp_size_in_bytes / 1e6:.0f} MB by XLA'
    print(f'{name}: {temporary}, {megabytes(kept(call, bits, params, part))} kept', flush=True)


def kept(call, bits, params, x):
  """What the backward pass takes from the forward one, as shapes."""
  pull = lambda bits, params, x: jax.vjp(lambda params: call(bits, params, x, x), params)[1]
  return jax.eval_shape(pull, bits, params, x)


def megabytes(tree):
  """The bytes of a pytree of shapes, in words."""
  return f'{sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 1e6:.0f} MB'


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--only', choices=('losses', 'memory'))
  only = parser.parse_args().only
  if only != 'memory':
    compare()
  if only != 'losses':
    memory()
