"""A layer of many experts of their own weights against one dense layer of an expert's size.

Claim: 64 experts, of which each token takes 2, cost at most 5 times their dense layer, whatever the
tokens choose: none is dropped.

Method: D=128, H=512, 512 random tokens, GELU, biases, LayerNorm and router included; value and
gradient of a sum of squares with respect to the input and all parameters. `skewed` is the same with
a bias of the router by which a third of all choices fall on 4 experts. PyTorch, where it is
installed, runs the same layers: its mixture is a loop over the experts that have tokens, each on
its own tokens, the usual form. Those of one framework are warm, then timed in turn; ratios are to
the dense layer of the same framework. CPU seconds are those of the process, the least of a call.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import timing

from additive_jax.models.feed_forward import FeedForward
from additive_jax.models.moe import Experts, MixtureOfExperts

EXPERTS, TOP, WIDTH, HIDDEN, TOKENS, REPEATS = 64, 2, 128, 512, 512, 25
SKEW = 1.0  # of the logits of the first 4 experts

stream = np.random.default_rng(0).normal(size=(1, TOKENS, WIDTH)).astype(np.float32)


def both(site, skew=0.0):
  """Compiled value and gradient of a site, ready to call, and the load of its experts."""
  params = jax.jit(site.init)(jax.random.key(0), stream)['params']
  if skew:
    params['selection_bias'] = jnp.zeros(EXPERTS).at[:4].set(skew)

  def loss(params, h):
    return jnp.square(site.apply({'params': params}, h)).sum()

  return functools.partial(jax.jit(jax.value_and_grad(loss, (0, 1))), params, jnp.asarray(stream))


def torch_runs(torch):
  """The same two layers in PyTorch."""
  nn = torch.nn
  h = torch.tensor(stream[0], requires_grad=True)

  def layer():
    parts = nn.Linear(WIDTH, HIDDEN), nn.GELU(approximate='tanh'), nn.Linear(HIDDEN, WIDTH)
    return nn.Sequential(*parts)

  norm, router = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, EXPERTS, bias=False)
  dense, experts = layer(), nn.ModuleList(layer() for _ in range(EXPERTS))

  def mixture():
    x = norm(h)
    weights, index = router(x).softmax(-1).topk(TOP, dim=-1)
    y = torch.zeros_like(x)
    for number in index.unique().tolist():
      tokens, place = torch.where(index == number)
      share = weights[tokens, place, None]
      y = y.index_add(0, tokens, share * experts[number](x[tokens]))
    return h + y

  def call(function, *modules):
    def run():
      for value in (h, *(p for module in modules for p in module.parameters())):
        value.grad = None
      function().square().sum().backward()

    return run

  return {
    'PyTorch, dense': call(lambda: h + dense(norm(h)), norm, dense),
    f'PyTorch, {EXPERTS} experts, a loop': call(mixture, norm, router, experts),
  }


def main():
  how = Experts(EXPERTS, TOP)
  runs = {
    'dense': both(FeedForward(HIDDEN)),
    f'{EXPERTS} experts': both(MixtureOfExperts(HIDDEN, how)),
    f'{EXPERTS} experts, skewed': both(MixtureOfExperts(HIDDEN, how), SKEW),
  }
  torch, note = timing.torch()
  times, cpu = timing.alternate(runs, REPEATS), timing.processor_seconds(runs, REPEATS)
  if torch is not None:
    others = torch_runs(torch)
    times |= timing.alternate(others, REPEATS)
    cpu |= timing.processor_seconds(others, REPEATS)
  rows = []
  for name, found in times.items():
    base = 'PyTorch, dense' if name.startswith('PyTorch') else 'dense'
    value = timing.ratio(times, name, base)
    target = timing.verdict(value, most=5) if name == f'{EXPERTS} experts' else ''
    rows.append(
      [
        name,
        f'{found.best * 1e3:.2f}',
        f'{found.spread:.0%}',
        f'{value:.1f}',
        f'{found.best / times[base].best:.1f}',
        f'{cpu[name] / cpu[base]:.1f}',
        target,
      ]
    )
  timing.report(
    f'{EXPERTS} experts, top {TOP}: D={WIDTH}, H={HIDDEN}, {TOKENS} tokens, forward and backward',
    ['layer', 'best, ms', 'spread', 'of dense, median', 'of the best', 'of CPU seconds', 'target'],
    rows,
    *note,
  )


if __name__ == '__main__':
  main()
