"""The bubble of a pipeline against its formula, and its gradients against those of one device.

Claim: on 4 stages of equal work the share of the devices' time that is idle is within 15 % of
(P − 1)/(M·R + P − 1), with P devices, M microbatches and R stages on each device; gradients are
within 1e-6 of sequential ones.

Method: MLP of 16 blocks, D=256, H=1024, on 4 forced host devices, GPipe and circular; the work of
embedding (16 numbers) and readout (10 classes) is small beside a stage's. In steps of gradient
descent, every tick of every device is timed, forward and backward, idle ticks too, in processor
seconds of the one thread that runs it, while the other devices wait: see
`additive_jax.parallel.pipeline_timing` for how, and for what that leaves out. The least of 10 steps
is taken for each. The idle share is put together from these times as devices of their own would
have it; forced devices share the cores, so the wall time of a step, given for information, shows
no bubble and no gain. The gradient is compared in the norm of the whole, all-on and with every
third block off.
"""

from __future__ import annotations

import os

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=4')

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing

from additive_jax import run
from additive_jax.models import MLP
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel import pipeline, processes
from additive_jax.parallel.pipeline_schedule import Pipeline
from additive_jax.parallel.pipeline_timing import measure_bubble
from additive_jax.parallel.staging import staging, unstack
from additive_jax.run.tasks import Task

BLOCKS, WIDTH, HIDDEN, INPUTS, CLASSES, ROWS = 16, 256, 1024, 16, 10, 128
DEVICES = 4
PIPELINES = (
  Pipeline(DEVICES, 4),
  Pipeline(DEVICES, 8),
  Pipeline(DEVICES, 16),
  Pipeline(DEVICES, 8, 'circular', 2),
)
LEAST = 10

model = MLP(BLOCKS, WIDTH, HIDDEN, CLASSES)
LOSS = Task('classification').mean_loss


def batch(how: Pipeline):
  """Microbatches of `ROWS` examples."""
  random = np.random.default_rng(0)
  size = how.microbatches * ROWS
  x = random.normal(size=(size, INPUTS)).astype(np.float32)
  return x, random.integers(0, CLASSES, size).astype(np.int32)


def bubbles(variables):
  rows = []
  for how in PIPELINES:
    report = measure_bubble(model, LOSS, how, variables, *batch(how), repeats=LEAST)
    off = report.measured / report.formula
    rows.append(
      [
        f'{how.schedule}, M={how.microbatches}, R={how.repeats}',
        f'{report.formula:.3f}',
        f'{report.measured:.3f}',
        f'{off:.2f} (target 0.85 to 1.15: {"met" if abs(off - 1) <= 0.15 else "missed"})',
        f'{report.idle_tick:.3f}',
        f'{1e3 * (report.forward + report.backward)[report.busy].mean():.1f}',
      ]
    )
  head = ['schedule', 'formula', 'measured', 'ratio', 'idle tick, of a busy one', 'busy tick, ms']
  timing.report(
    f'Bubble of 4 equal stages: {BLOCKS} blocks, D={WIDTH}, H={HIDDEN}, microbatches of {ROWS}',
    head,
    rows,
  )


def gradient(forward, x, y):
  """A compiled function of a pool and a structure."""

  def loss(variables, bits):
    return LOSS(forward(variables, x, bits), y)

  return jax.jit(jax.grad(loss))


def steps(variables):
  """Gradients and the wall time of a step, against one device."""
  mesh = mesh_.make_mesh(1, 1, pipe_devices=DEVICES)
  everything = np.ones(BLOCKS, bool)
  rows = []
  for how in (PIPELINES[1], PIPELINES[3]):
    x, y = batch(how)
    placed = pipeline.place_pool(model, variables, mesh, how, x)
    plain = gradient(lambda v, x, bits: run.conditional(model, v, x, bits), x, y)
    piped = gradient(pipeline.over_mesh(model, mesh, how), x, y)
    stages = staging(model, how, jax.ShapeDtypeStruct((1, INPUTS), x.dtype))
    gaps = []
    for bits in (everything, np.arange(BLOCKS) % 3 != 1):
      want, got = plain(variables, bits), unstack(stages, processes.to_host(piped(placed, bits)))
      gap = optax.tree.norm(jax.tree.map(jnp.subtract, got, want))
      gaps.append(float(gap / optax.tree.norm(want)))
    times = timing.alternate(
      {
        'plain': lambda f=plain: f(variables, everything),
        'pipeline': lambda f=piped, p=placed: f(p, everything),
      },
      10,
    )
    rows.append(
      [
        f'{how.schedule}, M={how.microbatches}, R={how.repeats}',
        f'{max(gaps):.1e} ({timing.verdict(max(gaps), most=1e-6)})',
        f'{timing.ratio(times, "pipeline", "plain"):.2f}',
        f'{times["pipeline"].spread:.0%}',
      ]
    )
  timing.report(
    f'Gradients on {DEVICES} devices against one, and the wall time of a step on shared cores',
    ['schedule', 'largest relative difference', "pipeline's time over plain", 'spread'],
    rows,
  )


def main():
  x, _ = batch(PIPELINES[0])
  variables = model.init(jax.random.key(0), x[:1])
  bubbles(variables)
  print()
  steps(variables)


if __name__ == '__main__':
  main()
