"""Mixtures of all structures of one layer, and of the best of them, against the dense layer.

Claim: the exact mixture over all 64 structures takes at most 6 times the dense layer and is 6 times
faster than evaluating the 64 experts one by one; the best 6 of 64 take at most 5 times the dense
layer and the best 2 at most 4 times, and are 8 times faster than the 64 experts; finding the exact
8 best of 2^24 structures for each of 4,096 tokens takes less than a tenth of the dense layer that
they route.

Method: m = 7 chunks, D=128, H=512, 512 random tokens, GELU, biases; value and gradient of a sum of
squares with respect to the input, all parameters and the logits. The experts one by one are tried
as 64 static layers written out in one program, and as a loop over the mask form; the faster is the
baseline. CPU seconds are those of the process, the least of a call. The k best: n = 24 gates,
logits given, against the forward pass of a dense layer of D=512, H=2048. All are compiled, then
timed in turn. With the argument `layers` the experts and the k best are left out.
"""

from __future__ import annotations

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import timing

from additive_jax.gates import mixtures, routers
from additive_jax.gates.layers import Layer, LayerPair, sub_activation
from additive_jax.gates.structure import all_bits

CHUNKS, WIDTH, HIDDEN, TOKENS, REPEATS = 7, 128, 512, 512, 25
GATES, BEST, ROUTED_TOKENS, ROUTED_WIDTH, ROUTED_HIDDEN = 24, 8, 4096, 512, 2048

rng = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5, jnp.float32)
structures = all_bits(CHUNKS - 1)
first = Layer(normal(WIDTH, HIDDEN), normal(HIDDEN))
second = Layer(normal(HIDDEN, WIDTH), normal(WIDTH))
arguments = {'x': normal(TOKENS, WIDTH) * TOKENS**0.5, 'layers': LayerPair(first, second)}
gate_logits = normal(TOKENS, CHUNKS - 1) * TOKENS**0.5
logits = normal(TOKENS, len(structures)) * TOKENS**0.5


def dense(x, layers):
  first, second, _ = layers
  return jax.nn.gelu(x @ first.kernel + first.bias) @ second.kernel + second.bias


def layer(structure, x, layers):
  return sub_activation(x, layers, structure, jax.nn.gelu)


def marginal(gate_logits, x, layers):
  weights = mixtures.span_weights(jax.nn.sigmoid(gate_logits))
  return mixtures.span_mixture(x, layers, weights, jax.nn.gelu)


def best(top, logits, x, layers):
  choice = routers.top_k(logits, top)
  chosen = jnp.asarray(structures)[choice.indices]
  return mixtures.structure_mixture(x, layers, chosen, choice.weights, jax.nn.gelu)


def log_weights(gate_logits):
  """Of all structures for each token, [T, 64]."""
  every = jnp.broadcast_to(structures, (*gate_logits.shape[:-1], *structures.shape))
  return routers.log_probabilities(gate_logits, every)


def written_out(gate_logits, **arguments):
  """64 static layers, each weighted."""
  weights = jnp.exp(log_weights(gate_logits))
  rows = [tuple(map(bool, row)) for row in structures]
  return sum(weights[:, s, None] * layer(row, **arguments) for s, row in enumerate(rows))


def looped(gate_logits, **arguments):
  """A loop over the mask form; a step is computed again in the backward pass."""
  weights = jnp.exp(log_weights(gate_logits))

  @jax.checkpoint
  def step(total, expert):
    bits, weight = expert
    return total + weight[:, None] * layer(bits, **arguments), None

  return jax.lax.scan(step, jnp.zeros_like(arguments['x']), (jnp.asarray(structures), weights.T))[0]


def both(function, *routed):
  """Compiled value and gradient with respect to everything, ready to call."""
  loss = lambda routed, arguments: jnp.square(function(*routed, **arguments)).sum()
  program = jax.jit(jax.value_and_grad(loss, (0, 1)))
  return functools.partial(program, routed, arguments)


def main():
  runs = {
    'dense': both(dense),
    'marginal, all 64': both(marginal, gate_logits),
    'best 6 of 64': both(functools.partial(best, 6), logits),
    'best 2 of 64': both(functools.partial(best, 2), logits),
  }
  most = {'marginal, all 64': 6, 'best 6 of 64': 5, 'best 2 of 64': 4}
  times, cpu = timing.alternate(runs, REPEATS), timing.processor_seconds(runs, REPEATS)
  rows = []
  for name, found in times.items():
    value = timing.ratio(times, name, 'dense')
    rows.append(
      [
        name,
        f'{found.best * 1e3:.2f}',
        f'{found.spread:.0%}',
        f'{value:.1f}',
        f'{found.best / times["dense"].best:.1f}',
        f'{cpu[name] / cpu["dense"]:.1f}',
        timing.verdict(value, most=most[name]) if name in most else '',
      ]
    )
  timing.report(
    f'Mixtures: m={CHUNKS}, D={WIDTH}, H={HIDDEN}, {TOKENS} tokens, forward and backward',
    ['layer', 'best, ms', 'spread', 'of dense, median', 'of the best', 'of CPU seconds', 'target'],
    rows,
  )
  if 'layers' not in sys.argv[1:]:
    one_by_one(runs)
    k_best()


def one_by_one(runs):
  experts = {'written out': both(written_out, gate_logits), 'loop': both(looped, gate_logits)}
  for name, run in experts.items():
    pairs = zip(jax.tree.leaves(runs['marginal, all 64']()), jax.tree.leaves(run()), strict=True)
    for a, b in pairs:
      np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())
    print(f'the marginal mixture equals 64 experts, {name}', flush=True)
  tried = timing.alternate(experts, 3)
  baseline = min(tried, key=lambda name: tried[name].best)
  print({name: f'{found.best * 1e3:.0f} ms' for name, found in tried.items()}, flush=True)
  least = {'marginal, all 64': 6, 'best 6 of 64': 8, 'best 2 of 64': 8}
  ours = {name: run for name, run in runs.items() if name in least}
  times = timing.alternate({'experts': experts[baseline]} | ours, 5)
  gains = {name: timing.ratio(times, 'experts', name) for name in least}
  timing.report(
    f'Mixtures against 64 experts one by one, {baseline}',
    ['layer', 'times faster', 'target'],
    [
      [name, f'{gain:.1f}', timing.verdict(gain, least=least[name])] for name, gain in gains.items()
    ],
  )


def k_best():
  x = normal(ROUTED_TOKENS, ROUTED_WIDTH)
  kernels = normal(ROUTED_WIDTH, ROUTED_HIDDEN), normal(ROUTED_HIDDEN, ROUTED_WIDTH)
  scores = normal(ROUTED_TOKENS, GATES) * ROUTED_TOKENS**0.5
  forward = jax.jit(lambda x, a, b: jax.nn.gelu(x @ a) @ b)
  route = jax.jit(functools.partial(routers.k_best, k=BEST, renormalise=True))
  runs = {'dense layer': lambda: forward(x, *kernels), 'k best': lambda: route(scores)}
  times = timing.alternate(runs, REPEATS)
  value = timing.ratio(times, 'k best', 'dense layer')
  timing.report(
    f'Exact {BEST} best of 2^{GATES} structures for {ROUTED_TOKENS} tokens, forward',
    ['what', 'best, ms', 'spread', 'of the dense layer', 'target'],
    [
      [name, f'{found.best * 1e3:.2f}', f'{found.spread:.0%}', text, target]
      for (name, found), text, target in zip(
        times.items(), ('1', f'{value:.3f}'), ('', timing.verdict(value, most=0.1)), strict=True
      )
    ],
  )


if __name__ == '__main__':
  main()
