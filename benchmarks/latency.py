"""Latencies that are predicted from a table of gates, beside those that are measured; tokens a
second; and what sites that run in pairs gain.

  python benchmarks/latency.py [--model=PATH] [--structures=30] [--seconds=60]

Without a model it is a decoder of 12 layers with random parameters. Each structure is a program of
its own, as an export runs; a table is measured in the same call. Run it on a machine that does
nothing else.
"""

from __future__ import annotations

import jax
import numpy as np
from absl import app, flags

import additive_jax as aj
from additive_jax.run.latency import measure_latency, time_structures, verify_latency

MODEL = flags.DEFINE_string('model', None, 'A Hugging Face directory or a GGUF file.')
COUNT = flags.DEFINE_integer('structures', 30, 'Structures, with 10 to 60 % of the gates off.')
SECONDS = flags.DEFINE_float('seconds', 60.0, 'To time for: the table, and the structures.')
LENGTH = flags.DEFINE_integer('length', 128, 'Tokens of a row.')
PAIRS = ((1, 1), (1, 16), (1, 128))  # rows and tokens that pairs are timed for


def network():
  """Returns a model and its pool."""
  if MODEL.value:
    loaded = aj.pretrained.load(MODEL.value)
    return loaded.model, loaded.variables
  sizes = {'num_layers': 12, 'width': 256, 'num_heads': 8, 'hidden': 768, 'num_tokens': 4096}
  model = aj.models.Decoder(**sizes)
  return model, model.init(jax.random.key(0), np.zeros((1, 4), np.int32))


def some_structures(n):
  """Returns random structures, none twice."""
  rng = np.random.default_rng(0)
  shares = np.linspace(0.1, 0.6, COUNT.value)
  rows = [np.isin(np.arange(n), rng.permutation(n)[round(share * n) :]) for share in shares]
  return np.array(rows)


def pairs(model, pool):
  """Prints the seconds of all sites in turn and of all pairs, and of twice the same for noise."""
  paired = aj.models.ParallelPairs(model)
  in_turn = np.ones(paired.space.num_gates, bool)
  side_by_side = np.array([not name.endswith('in_turn') for name in paired.space.names])
  for number, length in PAIRS:
    x = np.ones((number, length), np.int32)
    first, second, again = time_structures(
      paired, pool, x, [in_turn, side_by_side, in_turn], seconds=SECONDS.value / 3
    )
    print(
      f'{number} x {length:4} tokens: in turn {first * 1e3:8.2f} ms, in pairs {second * 1e3:8.2f} '
      f'ms, {min(first, again) / second:.2f} times faster (noise {first / again:.2f})',
      flush=True,
    )


def main(argv):
  """Prints the table's fit, tokens a second, and the pairs."""
  del argv
  model, pool = network()
  pool = jax.device_put(pool)
  x = np.arange(LENGTH.value, dtype=np.int32)[None] % model.num_tokens
  table = measure_latency(model, pool, x, seconds=SECONDS.value)
  structures = [aj.Structure.all_on(model.space.num_gates).bits, *some_structures(len(table.names))]
  found = verify_latency(table, model, pool, x, structures, seconds=SECONDS.value)
  off = np.abs(np.array(found.predicted) / found.measured - 1)[1:]
  print(
    f'{len(off)} structures: largest error {off.max():.1%}, median {np.median(off):.1%}, within '
    f'10 % {np.mean(off <= 0.1):.0%}, slope {found.slope:.3f}, rank correlation '
    f'{found.rank_correlation:.3f}'
  )
  for text, seconds in list(zip(found.structures, found.measured))[:: max(1, len(off) // 5)]:
    print(f'{text.count("0"):3} gates off: {x.size / seconds:8.0f} tokens a second')
  pairs(model, pool)


if __name__ == '__main__':
  app.run(main)
