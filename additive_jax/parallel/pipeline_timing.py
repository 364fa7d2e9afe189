"""How much of a running pipeline is idle, tick by tick.

Devices of a CPU share its cores, so the wall time of a step says nothing of what its stages would
take side by side. What is timed instead is every tick of every device in the program that computes
the loss and its gradient, forward and backward. The host is called before and after each tick; it
lets one device at once compute, with one thread, and takes that thread's processor time, so that
neither the other devices nor other programs of the machine count. The pipeline's time is then put
together as devices of their own would take it: all go on together (each hands its stream to the
next), so that a tick lasts as long as its slowest device's.

Left out: the time that a stream takes from device to device, the optimizer, and the sums of the
parameters' gradients over ticks, which every device adds up in idle ticks too.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from additive_jax.batches import shapes_of
from additive_jax.errors import UserError
from additive_jax.gates.structure import StructureLike
from additive_jax.gates.traced import traced_structure
from additive_jax.models.additive import Inputs, Stream, gate_names
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel import pipeline as pipeline_
from additive_jax.parallel import workers
from additive_jax.parallel.mesh import PIPE
from additive_jax.parallel.pipeline import MeanLoss
from additive_jax.parallel.pipeline_schedule import Pipeline, bubble, microbatches
from additive_jax.parallel.staging import pool_specs

RATE = 1e-4  # of the steps: any that keeps the loss finite
PATIENCE = 120.0  # seconds that a device waits for its turn, longer than any tick takes

# From a way, a device and a tick to the seconds that it took in each step.
Seconds = dict[tuple[str, int, int], list[float]]


@dataclasses.dataclass(frozen=True)
class BubbleReport:
  """Busy and idle ticks of P devices.

  Attributes:
    pipeline: whose.
    busy: whether the device worked, as said by the branch that it took.
    microbatch: the one that the schedule gives it; −1 where it has none.
    forward, backward: processor seconds of each tick, idle ones too: the least of several steps,
      for what else the machine does only adds. The backward pass goes from the last tick to the
      first; its seconds stand at the tick that they are the gradient of.

  Ticks that all last a second are idle as the formula says:

  >>> pipeline = Pipeline(devices=2, microbatches=3)
  >>> microbatch = microbatches(pipeline)
  >>> busy, seconds = microbatch >= 0, np.ones((2, 4))
  >>> report = BubbleReport(pipeline, busy, microbatch, seconds, seconds)
  >>> report.formula, report.measured
  (0.25, 0.25)
  """

  pipeline: Pipeline
  busy: Bool[np.ndarray, 'P ticks']
  microbatch: Int[np.ndarray, 'P ticks']
  forward: Float[np.ndarray, 'P ticks']
  backward: Float[np.ndarray, 'P ticks']

  @property
  def ticks(self) -> int:
    """Of one pass through all stages, forward or backward."""
    return self.busy.shape[1]

  @property
  def formula(self) -> float:
    """The idle share of equal ticks."""
    return bubble(self.pipeline)

  @property
  def measured(self) -> float:
    """The share of all devices' time in which they do not work: idle ticks, and what a device waits
    in a busy one for the slowest."""
    seconds = self.forward + self.backward
    lasts = self.forward.max(0).sum() + self.backward.max(0).sum()
    return float(1 - seconds[self.busy].sum() / (len(self.busy) * lasts))

  @property
  def idle_tick(self) -> float:
    """What an idle tick costs itself, mean over those of a busy one."""
    seconds = self.forward + self.backward
    return float(seconds[~self.busy].mean() / seconds[self.busy].mean())


def measure_bubble(
  model: nn.Module,
  mean_loss: MeanLoss,
  pipeline: Pipeline,
  variables: PyTree,
  x: Inputs,
  y: Inputs,
  *,
  structure: StructureLike | ArrayLike | None = None,
  devices: Sequence[jax.Device] | None = None,
  repeats: int = 20,
) -> BubbleReport:
  """Returns the seconds of every tick of steps of gradient descent on one batch in stages.

  All steps are in one program, as in a training; the first one, which also touches its memory for
  the first time, is left out.

  Args:
    model: an additive model whose sites `staging` can cut into alike stages.
    mean_loss: from outputs and targets to a batch's mean loss, such as that of a `Task`.
    pipeline: how sites and batch are cut.
    variables: `{'params': pool}`.
    x, y: a batch, [B, ...].
    structure: in any form that `run.conditional` takes; None is all-on.
    devices: of a CPU, at least `pipeline.devices`; None: the first ones.
    repeats: steps after the first one, of which the least seconds are taken.

  Raises:
    UserError: for fewer or other devices, and as `staging` does.
  """
  devices = jax.devices() if devices is None else list(devices)
  mesh_.check_spread({mesh_.PIPE: pipeline.devices}, len(devices[: pipeline.devices]))
  devices = devices[: pipeline.devices]
  if devices[0].platform != 'cpu':
    raise UserError(f'a bubble measured on {devices[0].platform} devices: expected those of a CPU')
  mesh = mesh_.make_mesh(1, 1, devices, pipe_devices=pipeline.devices)
  num_gates = len(gate_names(model))
  bits = traced_structure((True,) * num_gates if structure is None else structure, num_gates)
  example = shapes_of(x, num=1)
  specs = pool_specs(model, pipeline, example)
  clock = _Clock()
  around = functools.partial(_timed, clock)

  def loss(params: PyTree, bits: Array, x: Array, y: Array) -> tuple[Array, Array]:
    return pipeline_.loss(model, pipeline, mean_loss, params, bits, x, y, around=around)

  placed = pipeline_.place_pool(model, variables, mesh, pipeline, x)['params']
  batch = mesh_.replicate((bits, x, y), mesh)
  program = _steps(loss, mesh, specs, 1 + repeats)
  _, worked = jax.block_until_ready(program(placed, *batch))
  forward, backward = _table(clock.seconds, pipeline)
  return BubbleReport(pipeline, np.asarray(worked), microbatches(pipeline), forward, backward)


def _steps(
  loss: Callable[..., tuple[Array, Array]], mesh: Mesh, specs: PyTree, count: int
) -> Callable[..., tuple[PyTree, Bool[Array, 'P ticks']]]:
  """Returns a compiled program that takes that many steps down `loss(params, *batch)`, and gives
  the ticks of the last one that were busy; `specs` are those of the parameters."""

  def steps(params: PyTree, *batch: Array) -> tuple[PyTree, Bool[Array, '1 ticks']]:
    def step(params: PyTree, _: None) -> tuple[PyTree, Bool[Array, 'ticks']]:
      gradient, worked = jax.grad(loss, has_aux=True)(params, *batch)
      return jax.tree.map(lambda p, g: p - RATE * g, params, gradient), worked

    params, worked = jax.lax.scan(step, params, length=count)
    return params, worked[-1:]

  everywhere = PartitionSpec()
  program = jax.shard_map(
    steps,
    mesh=mesh,
    in_specs=(specs, everywhere, everywhere, everywhere),
    out_specs=(specs, PartitionSpec(PIPE)),
    check_vma=False,
  )
  return jax.jit(program, compiler_options=workers.SINGLE_THREAD)


class _Clock:
  """Times what stands between two calls, and lets one device at a time into it."""

  def __init__(self) -> None:
    self.seconds: Seconds = collections.defaultdict(list)
    self._turn = threading.Lock()
    self._started = _now()

  def start(self, way: str, device: Array, tick: Array, _: Array) -> np.float32:
    if not self._turn.acquire(timeout=PATIENCE):
      raise RuntimeError(f'device {int(device)} waited {PATIENCE:g} s for its turn')
    self._started = _now()
    return np.float32(0)

  def stop(self, way: str, device: Array, tick: Array, _: Array) -> np.float32:
    (before, of_thread, of_process), (thread, *now) = self._started, _now()
    # Once in a while XLA goes on in another thread. The process has done no less than the device.
    seconds = now[0] - of_thread if thread == before else now[1] - of_process
    self.seconds[way, int(device), int(tick)].append(seconds)
    self._turn.release()
    return np.float32(0)


def _now() -> tuple[int, float, float]:
  """Returns the thread, and the processor seconds that it and the process have taken."""
  return threading.get_ident(), time.thread_time(), time.process_time()


def _table(seconds: Seconds, pipeline: Pipeline) -> Float[np.ndarray, '2 P ticks']:
  """Returns seconds of the forward and the backward pass: the least after the first step."""
  ways, devices, ticks = ('forward', 'backward'), range(pipeline.devices), range(pipeline.ticks)
  least = lambda way, device, tick: min(seconds[way, device, tick][1:])
  return np.array([[[least(way, d, t) for t in ticks] for d in devices] for way in ways])


def _timed(
  clock: _Clock, run: Callable[[Array], tuple[Any, ...]], h: Stream, tick: Int[Array, '']
) -> tuple[Any, ...]:
  """Returns `run(h)` between two calls of the host, and its gradient between two more."""
  out = run(_mark(clock, True, h, tick))
  return _mark(clock, False, out[0], tick), *out[1:]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mark(clock: _Clock, enters: bool, h: Stream, tick: Int[Array, '']) -> Stream:
  return _stamped(clock.start if enters else clock.stop, 'forward', h, tick)


def _mark_forward(
  clock: _Clock, enters: bool, h: Stream, tick: Int[Array, '']
) -> tuple[Stream, Int[Array, '']]:
  return _mark(clock, enters, h, tick), tick


def _mark_backward(
  clock: _Clock, enters: bool, tick: Int[Array, ''], cotangent: Stream
) -> tuple[Stream, np.ndarray]:
  # The gradient enters a tick where the stream leaves it.
  stamp = clock.stop if enters else clock.start
  nothing = np.zeros((), jax.dtypes.float0)
  return _stamped(stamp, 'backward', cotangent, tick), nothing


_mark.defvjp(_mark_forward, _mark_backward)


def _stamped(stamp: Callable[..., np.float32], way: str, h: Stream, tick: Int[Array, '']) -> Stream:
  """Returns `h`, which is there before the call of the host, and of use only after it: it adds a
  zero."""
  shape = jax.ShapeDtypeStruct((), jnp.float32)
  device, first = jax.lax.axis_index(PIPE), h.reshape(-1)[0]
  zero = jax.pure_callback(functools.partial(stamp, way), shape, device, tick, first)
  return h + zero.astype(h.dtype)
