"""All structures of a pretrained language model with one gate off: by shared prefix, and by a loop
over a compiled conditional pass; clock, CPU seconds, and the most memory.

  python benchmarks/leave_one_out.py --model=PATH [--rows=8] [--length=256]

The text is code of the standard library; losses are among what is timed. The second of two calls
counts, which compiles nothing.
"""

from __future__ import annotations

import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import additive_jax as aj
from additive_jax.batches import rows
from additive_jax.run import conditional
from additive_jax.run.tasks import Task

MODEL = flags.DEFINE_string('model', None, 'A directory or GGUF file.', required=True)
ROWS = flags.DEFINE_integer('rows', 8, 'Sequences.')
LENGTH = flags.DEFINE_integer('length', 256, 'Tokens of each.')


def timed(name, call):
  """Prints what a call takes, and returns what it gave."""
  clock, used = time.perf_counter(), time.process_time()
  losses = call()
  clock, used = time.perf_counter() - clock, time.process_time() - used
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
  print(f'{name:12} {clock:7.1f} s, {used:7.1f} s CPU, at most {memory:.2f} GB', flush=True)
  return np.asarray(losses)


def main(argv):
  """Prints a line for each way, and how far the losses are apart."""
  del argv
  loaded, task = aj.pretrained.load(MODEL.value), Task('language')
  model, pool = loaded.model, jax.device_put(loaded.variables)
  data = aj.data.load('stdlib', tokenizer=loaded.tokenizer, sequence_length=LENGTH.value)
  x, y = rows((data.test.x, data.test.y), slice(ROWS.value))
  n = model.space.num_gates
  bits = ~np.eye(n + 1, n, -1, dtype=bool)  # all on, then each off
  shared = lambda: aj.evaluate_structures(model, pool, (x, y), bits, task=task).loss
  loss = jax.jit(lambda pool, x, y, row: task.mean_loss(conditional(model, pool, x, row), y))
  placed = jax.device_put((x, y))
  shared()
  first = timed('shared', shared)
  loss(pool, *placed, bits[0]).block_until_ready()
  second = timed('conditional', lambda: [float(loss(pool, *placed, jnp.array(b))) for b in bits])
  print(f'largest difference of the losses {np.abs(first - second).max():.1e}')


if __name__ == '__main__':
  app.run(main)
