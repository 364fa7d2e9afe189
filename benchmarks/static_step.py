"""A training step of the all-on structure against the same network without gates.

Claim: static gates cost nothing: at most 1.03 times the step of plain Flax, and the same loss.

Method: MLP of 12 blocks, D=128, H=512, batch of 256 random examples, AdamW. `Plain` below is the
network as anyone would write it; its layers carry the same names, so both start from one set of
parameters. Both steps are compiled and donate their state. First 20 steps of each from the same
start are compared loss by loss; then bursts of 5 steps are timed in turn.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import optax
import timing

from additive_jax.models import MLP

BLOCKS, WIDTH, HIDDEN, CLASSES, BATCH = 12, 128, 512, 10, 256
COMPARED, BURST, REPEATS = 20, 5, 25


class Block(nn.Module):
  hidden: int

  @nn.compact
  def __call__(self, h):
    width = h.shape[-1]
    h = nn.LayerNorm(name='norm')(h)
    h = nn.gelu(nn.Dense(self.hidden, name='in')(h))
    return nn.Dense(width, name='out')(h)


class Readout(nn.Module):
  @nn.compact
  def __call__(self, h):
    return nn.Dense(CLASSES, name='out')(nn.LayerNorm(name='norm')(h))


class Plain(nn.Module):
  @nn.compact
  def __call__(self, x):
    h = nn.Dense(WIDTH, name='embed')(x)
    for i in range(BLOCKS):
      h = h + Block(HIDDEN, name=f'block_{i:02}')(h)
    return Readout(name='readout')(h)


class Training:
  """A network under training: the state, and the compiled step that replaces it."""

  def __init__(self, apply, variables, batch):
    optimizer = optax.adamw(1e-3)
    # A copy: the step donates its state, and both networks start from the same arrays.
    params = jax.tree.map(lambda leaf: jax.numpy.array(leaf), variables['params'])
    self.state, self.batch = (params, optimizer.init(params)), batch

    def loss(params, x, y):
      logits = apply({'params': params}, x)
      return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(state, x, y):
      params, opt_state = state
      value, gradient = jax.value_and_grad(loss)(params, x, y)
      updates, opt_state = optimizer.update(gradient, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), value

    self._step = jax.jit(step, donate_argnums=0)

  def run(self, num_steps):
    losses = []
    for _ in range(num_steps):
      self.state, loss = self._step(self.state, *self.batch)
      losses.append(loss)
    return losses


def main():
  rng = np.random.default_rng(0)
  batch = jax.device_put(
    (rng.normal(size=(BATCH, 64)).astype(np.float32), rng.integers(CLASSES, size=BATCH))
  )
  gated, plain = MLP(BLOCKS, WIDTH, HIDDEN, CLASSES), Plain()
  variables = plain.init(jax.random.key(0), batch[0])
  all_on = gated.space.all_on()
  runs = {
    'gated, static all-on': Training(lambda v, x: gated.apply(v, x, all_on), variables, batch),
    'plain Flax': Training(plain.apply, variables, batch),
  }
  first, second = (np.array(training.run(COMPARED)) for training in runs.values())
  assert first[-1] < first[0]
  difference = np.abs(first - second).max()
  times = timing.alternate({n: lambda t=t: t.run(BURST) for n, t in runs.items()}, REPEATS)
  value = timing.ratio(times, *runs)
  by_best = times['gated, static all-on'].best / times['plain Flax'].best
  timing.report(
    f'Static step: {BLOCKS} blocks, D={WIDTH}, H={HIDDEN}, B={BATCH}, AdamW',
    ['network', 'best, ms a step', 'median, ms a step', 'spread'],
    [
      [name, f'{t.best / BURST * 1e3:.1f}', f'{t.median / BURST * 1e3:.1f}', f'{t.spread:.0%}']
      for name, t in times.items()
    ],
    f'Ratio: {value:.3f} (median of {REPEATS} turns; {timing.verdict(value, most=1.03)}), '
    f'{by_best:.3f} by the best of each.',
    f'Largest difference of loss over {COMPARED} steps from {first[0]:.3f} to {first[-1]:.3f}: '
    f'{difference:.1e}.',
  )


if __name__ == '__main__':
  main()
