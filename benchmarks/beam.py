"""A beam search of width 4 over a language model: every set of structures that it asks for is
judged by shared prefix, and by a loop over a compiled conditional pass; clock and CPU seconds.

  python benchmarks/beam.py [--model=PATH] [--rows=2] [--length=256] [--levels=3]

Without a model it is a decoder of 8 layers with random parameters on random tokens; of a model the
text is code of the standard library. Losses are among what is timed, compilation is not: a call
that compiles is made once more. Both sides are in turn for each set, so that a slow moment of the
machine hits both.
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
import timing
from absl import app, flags

import additive_jax as aj
from additive_jax import search
from additive_jax.batches import rows
from additive_jax.run import conditional
from additive_jax.run.tasks import Task

MODEL = flags.DEFINE_string('model', None, 'A Hugging Face directory or a GGUF file.')
ROWS = flags.DEFINE_integer('rows', 2, 'Sequences.')
LENGTH = flags.DEFINE_integer('length', 256, 'Tokens of each.')
LEVELS = flags.DEFINE_integer('levels', 3, 'Levels of the beam: about as many gates go off.')
WIDTH = flags.DEFINE_integer('width', 4, 'Structures of a level whose children are tried.')
WAYS = ('shared prefix', 'conditional loop')
COMPILED = '/jax/core/compile/backend_compile_duration'
TASK = Task('language')


class Both:
  """An evaluator that judges each set both ways.

  Attributes:
    clock, used: seconds of each way, by the clock and of the CPU.
    asked: how many structures.
    apart: the largest difference of their losses.
    runs: of sites, by each way.
  """

  def __init__(self, model, pool, batch):
    self.model, self.pool, self.batch = model, pool, batch
    self.clock, self.used = dict.fromkeys(WAYS, 0.0), dict.fromkeys(WAYS, 0.0)
    self.runs = dict.fromkeys(WAYS, 0)
    self.asked, self.apart, self.compiled = 0, 0.0, 0
    self.loss = jax.jit(lambda pool, x, y, row: TASK.mean_loss(conditional(model, pool, x, row), y))
    self.placed = jax.device_put(batch)
    jax.monitoring.register_event_duration_secs_listener(self._heard)

  def _heard(self, event, duration, **others):
    del duration, others
    self.compiled += event == COMPILED

  def __call__(self, bits, share=1.0):
    """Returns the losses."""
    del share
    first, second = (self._timed(way, bits) for way in WAYS)
    self.asked += len(bits)
    self.apart = max(self.apart, float(np.abs(first - second).max()))
    self.runs['conditional loop'] += int(bits.sum())
    prefixes = [bits[bits[:, i], : i + 1] for i in range(bits.shape[1])]
    self.runs['shared prefix'] += sum(len(np.unique(some, axis=0)) for some in prefixes)
    print(f'{self.asked} structures', flush=True)
    return first

  def _timed(self, way, bits):
    before = self.compiled
    clock, used = time.perf_counter(), time.process_time()
    losses = self._judged(way, bits)
    clock, used = time.perf_counter() - clock, time.process_time() - used
    if self.compiled > before:
      return self._timed(way, bits)
    self.clock[way] += clock
    self.used[way] += used
    return losses

  def _judged(self, way, bits):
    if way == 'shared prefix':
      return aj.evaluate_structures(self.model, self.pool, self.batch, bits, task=TASK).loss
    return np.array([float(self.loss(self.pool, *self.placed, jnp.array(row))) for row in bits])


def network():
  """Returns a model, its pool and a batch."""
  if MODEL.value:
    loaded = aj.pretrained.load(MODEL.value)
    data = aj.data.load('stdlib', tokenizer=loaded.tokenizer, sequence_length=LENGTH.value)
    return loaded.model, loaded.variables, rows((data.test.x, data.test.y), slice(ROWS.value))
  sizes = {'num_layers': 8, 'width': 64, 'num_heads': 4, 'hidden': 128, 'num_tokens': 1024}
  model = aj.models.Decoder(**sizes)
  tokens = np.random.default_rng(0).integers(0, 1024, (ROWS.value, LENGTH.value + 1), np.int32)
  pool = jax.jit(model.init)(jax.random.key(0), tokens[:, :-1])
  return model, pool, (tokens[:, :-1], tokens[:, 1:])


def main(argv):
  """Prints a row for each way, and the ratio."""
  del argv
  model, pool, batch = network()
  both = Both(model, jax.device_put(pool), batch)
  costs = search.Costs.of_space('params', aj.measure(model, rows(batch[0], slice(1))))
  # The budget is what all-on costs less a median gate for each level.
  most = costs.full - LEVELS.value * float(np.median(costs.gates))
  beam = search.Beam(width=WIDTH.value, levels=LEVELS.value)
  search.find(both, costs, method=beam, budget=search.Budget('params', most))
  lines = [
    [way, both.asked, f'{both.clock[way]:.1f}', f'{both.used[way]:.1f}', both.runs[way]]
    for way in WAYS
  ]
  ratio = lambda seconds: seconds[WAYS[1]] / seconds[WAYS[0]]
  timing.report(
    f'A beam of width {WIDTH.value}, {model.space.num_gates} gates, {ROWS.value} x {LENGTH.value}',
    ['way', 'structures', 'seconds', 'CPU seconds', 'runs of a site'],
    lines,
    f'Shared prefix takes {ratio(both.used):.2f} times fewer CPU seconds '
    f'({timing.verdict(ratio(both.used), least=2)}), {ratio(both.clock):.2f} times by the clock; '
    f'{ratio(both.runs):.2f} times fewer runs of a site, and as many readouts and losses. Losses '
    f'differ by {both.apart:.0e} at most.',
  )


if __name__ == '__main__':
  app.run(main)
