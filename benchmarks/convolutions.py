"""A conditional step of networks of a user's own with plain `nn.Conv`, all gates on.

Claim: convolutions train as fast in the library's loops and conditionals as outside of them: a
conditional step of all-on takes at most 1.3 of a plain jitted Flax step, with the same loss.

Method: the network of README's "Bring your own network" on its images (8 × 8, batch of 256), and
one in the shape of ResNet-18 (four stages of two basic blocks, 16 × 16 colour images, batch of 32,
16 to 128 channels). The library takes a structure as data and steps by `train_step`; the plain step
is the same module with its sites added up, without gates or checkpoints. AdamW on the whole pool.
Steps are timed in turn; a third row has JAX's own gradients of convolutions inside the conditional.
"""

from __future__ import annotations

import contextlib
import functools
import sys

import flax.linen as nn
import jax
import numpy as np
import optax
import timing

import additive_jax as aj
from additive_jax.models import surrounding
from additive_jax.train.gradients import Slots
from additive_jax.train.recipe import Recipe
from additive_jax.train.state import init_state, train_step

REPEATS = 15


class Branch(nn.Module):
  """A branch of README's network."""

  width: int

  @nn.compact
  def __call__(self, h):
    return nn.Conv(h.shape[-1], (3, 3))(nn.relu(nn.Conv(self.width, (1, 1))(nn.LayerNorm()(h))))


class Net(aj.Additive):
  """README's network."""

  num_classes: int = 10

  def setup(self):
    self.embed = nn.Conv(16, (3, 3))
    self.sites = [Branch(width, name=f'block_{i}') for i, width in enumerate((8, 16, 32))]
    self.head = nn.Dense(self.num_classes)

  def readout(self, h):
    """Returns logits."""
    return self.head(h.mean((1, 2)))


class Basic(nn.Module):
  """The branch of a basic block."""

  channels: int

  @nn.compact
  def __call__(self, h):
    for name in ('first', 'second'):
      h = nn.GroupNorm(8)(h)
      h = nn.Conv(self.channels, (3, 3), use_bias=False, name=name)(nn.relu(h))
    return h


class Down(nn.Module):
  """A strided, widening block, which no gate switches: its residual is a projection."""

  channels: int
  gates = ()

  @nn.compact
  def __call__(self, h, gates=()):
    shortcut = nn.Conv(self.channels, (1, 1), (2, 2), use_bias=False, name='shortcut')(h)
    h = nn.Conv(self.channels, (3, 3), (2, 2), use_bias=False)(nn.relu(nn.GroupNorm(8)(h)))
    h = nn.Conv(self.channels, (3, 3), use_bias=False)(nn.relu(nn.GroupNorm(8)(h)))
    return shortcut + h


class ResNet(aj.Additive):
  """ResNet-18 with GroupNorm: eight basic blocks, three of which halve the image."""

  channels: tuple[int, ...] = (16, 32, 64, 128)
  num_classes: int = 10

  def setup(self):
    self.embed = nn.Conv(self.channels[0], (3, 3), use_bias=False)
    sites = []
    for stage, channels in enumerate(self.channels):
      first = Down(channels, name=f's{stage}_0') if stage else Basic(channels, name='s0_0')
      sites += [first, Basic(channels, name=f's{stage}_1')]
    self.sites = sites
    self.head = nn.Dense(self.num_classes)

  def readout(self, h):
    """Returns logits."""
    return self.head(nn.relu(h).mean((1, 2)))


def plain(module, x):
  """Returns the logits of all-on, as one would write them without gates."""
  h = module.embed(x)
  for site in module.sites:
    h = site(h, ()) if hasattr(site, 'gates') else h + site(h)
  return module.readout(h)


def plain_step(model, optimizer, state, x, y):
  """Takes a plain Flax step."""
  pool, kept = state

  def loss(pool):
    logits = nn.Module.apply(model, {'params': pool}, x, method=plain)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  value, gradient = jax.value_and_grad(loss)(pool)
  updates, kept = optimizer.update(gradient, kept, pool)
  return (optax.apply_updates(pool, updates), kept), value


def measured(name, model, shape):
  """Returns the rows of one network, and the ratio of its conditional step."""
  rng = np.random.default_rng(0)
  x = jax.device_put(rng.normal(size=shape).astype(np.float32))
  y = jax.device_put(rng.integers(10, size=shape[0]))
  optimizer = optax.adamw(1e-3)
  variables = jax.jit(model.init)(jax.random.key(0), x)
  recipe = Recipe(model, 'classification', optimizer)
  bits = np.ones((1, len(model.space.names)), bool)

  def ours(context=contextlib.nullcontext):
    state = [init_state(recipe, jax.tree.map(jax.numpy.copy, variables))]
    step = jax.jit(lambda state, slots: train_step(recipe, state, slots), donate_argnums=0)

    def run():
      with context():
        state[0], metrics = step(state[0], Slots(bits, x[None], y[None]))
      return metrics['loss'].squeeze()

    return run

  def theirs():
    state = [
      jax.tree.map(jax.numpy.copy, (variables['params'], optimizer.init(variables['params'])))
    ]
    step = jax.jit(functools.partial(plain_step, model, optimizer), donate_argnums=0)

    def run():
      state[0], value = step(state[0], x, y)
      return value

    return run

  @contextlib.contextmanager
  def own_gradients():
    kept, surrounding.fast_convolutions = surrounding.fast_convolutions, contextlib.nullcontext
    try:
      yield
    finally:
      surrounding.fast_convolutions = kept

  runs = {'plain Flax': theirs(), 'conditional': ours()}
  losses = [float(run()) for run in runs.values()]
  assert np.isclose(*losses, rtol=1e-4), losses
  slow = timing.alternate({'slow': ours(own_gradients)}, 2)['slow']
  times = timing.alternate(runs, REPEATS)
  ratio = timing.ratio(times, 'conditional', 'plain Flax')
  rows = [
    [
      name,
      way,
      f'{found.best * 1e3:.1f}',
      f'{found.spread:.0%}',
      f'{found.best / times["plain Flax"].best:.2f}',
    ]
    for way, found in {**times, "conditional, JAX's own gradients": slow}.items()
  ]
  return rows, ratio


def main():
  networks = {
    "README's Net": (Net(), (256, 8, 8, 1)),
    'ResNet-18-like': (ResNet(), (32, 16, 16, 3)),
  }
  results = {name: measured(name, *case) for name, case in networks.items()}
  timing.report(
    'Plain nn.Conv in a conditional step of all-on',
    ['network', 'step', 'best, ms', 'spread', 'of plain Flax'],
    [row for rows, _ in results.values() for row in rows],
    *[
      f'{name}: {ratio:.2f} of a plain Flax step (median of {REPEATS} turns; '
      f'{timing.verdict(ratio, most=1.3)}).'
      for name, (_, ratio) in results.items()
    ],
  )


if __name__ == '__main__':
  sys.exit(main())
