"""Bytes that lanes on a mesh all-reduce, by the number of lane gates that are off.

Claim: on 4 devices a gate that is off moves nothing: the forward pass has one all-reduce of the
stream for each gate that is on, and the readout's unless the last gate is on; the gradient adds as
many, beside those of replicated parameters.

Method: transformer of 4 layers with lane gates on attention and feed-forward branches (8 gates),
D=128, 4 heads, H=512, T=64, B=8, 4 forced host devices. The bytes are those of the operands of
every all-reduce in the compiled text of the forward pass and of the gradient. The time of a
forward pass is given beside them: forced host devices share the cores and their memory, so it
says little of a mesh of machines.
"""

from __future__ import annotations

import math
import os
import re

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=4')

import jax
import numpy as np
import timing

from additive_jax import run
from additive_jax.models import Transformer
from additive_jax.parallel import lanes

LAYERS, WIDTH, HEADS, HIDDEN, TOKENS, BATCH, BYTES, DEVICES = 4, 128, 4, 512, 64, 8, 256, 4
SIZES = {'f32': 4, 'bf16': 2}

model = Transformer(
  LAYERS,
  WIDTH,
  HEADS,
  HIDDEN,
  BYTES,
  num_tokens=BYTES,
  causal=True,
  max_tokens=TOKENS,
  gates=('lane',),
  num_lanes=DEVICES,
)


def reduced_bytes(text: str) -> list[int]:
  """Bytes of each operand of every all-reduce of a compiled program."""
  sizes = []
  for line in re.findall(r'^.* all-reduce(?:-start)?\(.*$', text, re.M):
    result = line.split(' all-reduce')[0].split('= ')[1]
    for dtype, shape in re.findall(r'(\w+)\[([\d,]*)\]', result):
      sizes.append(SIZES[dtype] * math.prod(int(d) for d in shape.split(',') if d))
  return sizes


def main():
  mesh = lanes.lane_mesh(DEVICES, jax.devices()[:DEVICES])
  x = np.random.default_rng(0).integers(BYTES, size=(BATCH, TOKENS))
  placed = lanes.place_pool(model, model.init(jax.random.key(0), x), mesh, x)
  way = lanes.over_mesh(run.static, model, mesh)
  num_gates = 2 * LAYERS
  stream = BATCH * TOKENS * WIDTH * 4
  forward, ahead, gradient = {}, {}, {}
  for num_on in range(num_gates, -1, -2):
    bits = tuple(i * num_on % num_gates < num_on for i in range(num_gates))
    assert sum(bits) == num_on
    program = jax.jit(lambda v, x, s=bits: way(v, x, s))
    backward = jax.jit(jax.grad(lambda v, x, s=bits: way(v, x, s).var()))
    forward[num_on] = program.lower(placed, x).compile()
    sizes = reduced_bytes(forward[num_on].as_text())
    ahead[num_on] = sum(sizes)
    assert sizes == [stream] * (num_on + (not bits[-1])), sizes
    gradient[num_on] = sum(reduced_bytes(backward.lower(placed, x).compile().as_text()))
    parameters = gradient[num_on] - 2 * ahead[num_on]
    assert 0 <= parameters < stream, (gradient, ahead)
  times = timing.alternate(
    {on: lambda p=program: p(placed, x) for on, program in forward.items()}, 15
  )
  rows = []
  for on in forward:
    rows.append(
      [
        num_gates - on,
        f'{ahead[on] / 1e6:.2f}',
        f'{gradient[on] / 1e6:.2f}',
        f'{times[on].best * 1e3:.1f}',
      ]
    )
  timing.report(
    f'Lanes on {DEVICES} devices: {num_gates} gates, D={WIDTH}, H={HIDDEN}, T={TOKENS}, B={BATCH}',
    ['gates off', 'MB reduced, forward', 'with the gradient', 'best, ms forward'],
    rows,
    f'One all-reduce of the stream is {stream / 1e6:.2f} MB; gradients of replicated parameters '
    f'are {parameters / 1e6:.2f} MB of each row.',
  )


if __name__ == '__main__':
  main()
