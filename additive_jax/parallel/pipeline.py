"""Pipeline parallelism: the sites of a network in stages over the mesh axis `pipe`.

A batch goes through the stages (`staging`) in microbatches, as `pipeline_schedule` says. In each
tick of a `lax.scan` every device runs one of its stages on one microbatch and hands the stream on
to the next device (`ppermute`), which is the only collective and stands outside of all branches. A
tick in which a device has nothing to do is a branch that is not taken, forward and backward. The
first device alone embeds, the last one alone reads out.

Each device runs its own sites under their own gates, by `lax.cond`: a structure that leaves the
sites of one stage out shortens no tick, for the others wait for its slowest device.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from additive_jax.batches import Shapes, num_examples, rows, shapes_of
from additive_jax.errors import UserError
from additive_jax.gates.structure import StructureLike
from additive_jax.gates.sums import SAVED
from additive_jax.gates.traced import traced_structure
from additive_jax.models.additive import (
  Inputs,
  Logits,
  Stream,
  embed,
  gate_names,
  readout,
  sites_of,
  step,
)
from additive_jax.models.surrounding import in_mode, mode
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel import processes
from additive_jax.parallel.mesh import DATA, PIPE
from additive_jax.parallel.pipeline_schedule import Pipeline
from additive_jax.parallel.staging import Staged, pool_specs, stack, staging

MeanLoss = Callable[[Any, Any], Any]


def run_ticks(
  model: nn.Module,
  pipeline: Pipeline,
  params: Staged,
  x: Inputs,
  bits: Bool[Array, 'n'],
  finish: Callable[[Array, Array], PyTree],
  *,
  scales: Float[Array, 'n'] | None = None,
  around: Callable[..., tuple[Any, ...]] | None = None,
) -> tuple[PyTree, Bool[Array, 'ticks']]:
  """Runs all ticks of one device, inside `shard_map`.

  Args:
    params: this device's: stages of leaves [1, R, ...].
    x: inputs [B, ...], the same on all devices of `pipe`.
    bits: the structure, bool [n].
    finish: from the logits [B/M, ..., C] of a microbatch and its number to a pytree of arrays.
    scales: as for `run.conditional`.
    around: for measurements, called as `around(run, h, tick)` in place of `run(h)` for every tick;
      `run` gives a tuple whose first element is the stream.

  Returns what `finish` gave, with a leading axis of ticks: zeros but for the ticks in which the
  last device ends a microbatch; and whether this device worked, bool [ticks]. Raises `UserError`
  for a batch that does not divide into the microbatches; see `staging`.
  """
  names = staging(model, pipeline, _example(x)).names[0]  # modules of the first stage run all
  check_batch(num_examples(x), pipeline)
  inputs, size = _microbatches(x, pipeline), num_examples(x) // pipeline.microbatches
  device, ends = jax.lax.axis_index(PIPE), {'params': params.ends}
  last = lambda h, number: finish(readout(model, ends, h), number)
  with _of_stage(jnp.int32(0), size, jnp.int32(0)):
    stream = jax.eval_shape(lambda: embed(model, ends, rows(inputs, 0)))
    nothing = _zeros(jax.eval_shape(last, stream, jnp.int32(0)))
  by_stage = lambda values: values.reshape(pipeline.stages, len(values) // pipeline.stages)

  def work(h: Stream, repeat: Array, number: Array) -> tuple[Stream, PyTree, bool]:
    stage = repeat * pipeline.devices + device
    site_params = jax.tree.map(lambda leaf: leaf[0, repeat], params.stages)
    pools = [params.ends | ({name: site} if name else {}) for name, site in zip(names, site_params)]
    factors = None if scales is None else by_stage(scales)[stage]
    with _of_stage(number, size, stage * len(names)):
      first = lambda h: embed(model, ends, rows(inputs, number))
      h = jax.lax.cond(stage == 0, first, lambda h: h, h)
      h = _run_sites(model, pools, h, by_stage(bits)[stage], factors)
      ended = stage == pipeline.stages - 1
      return h, jax.lax.cond(ended, last, lambda h, _: nothing, h, number), True

  # What the gradient of a branch needs is written in ticks that skip it too, as zeros.
  work = jax.checkpoint(work, prevent_cse=False, policy=None if pipeline.remat else SAVED)

  def tick(h: Stream, now: Array) -> tuple[Stream, tuple[PyTree, Array]]:
    busy, repeat, number = pipeline.turn(now, device)
    idle = lambda h, *_: (h, nothing, False)
    run = lambda h: jax.lax.cond(busy, work, idle, h, repeat, number)
    h, value, worked = run(h) if around is None else around(run, h, now)
    return jax.lax.ppermute(h, PIPE, _onward(pipeline)), (value, worked)

  _, (values, worked) = jax.lax.scan(tick, _zeros(stream), jnp.arange(pipeline.ticks))
  return values, worked


def _of_stage(
  number: Int[Array, ''], size: int, first_site: Int[Array, '']
) -> contextlib.AbstractContextManager[None]:
  """Makes parts run as those of a stage, on a microbatch of some size."""
  now = mode()
  if now.dropout is None:
    return contextlib.nullcontext()
  rows = number * size + jnp.arange(size)
  rows = rows if now.rows is None else now.rows[rows]
  return in_mode(dataclasses.replace(now, rows=rows, first_site=first_site))


def _onward(pipeline: Pipeline) -> list[tuple[int, int]]:
  """Returns which device hands its stream on to which: each to the next, and the last to the first
  where streams go around again."""
  senders = range(pipeline.devices if pipeline.repeats > 1 else pipeline.devices - 1)
  return [(sender, (sender + 1) % pipeline.devices) for sender in senders]


def _run_sites(
  model: nn.Module,
  pools: Sequence[PyTree],
  h: Stream,
  bits: Bool[Array, 'n'],
  scales: Float[Array, 'n'] | None,
) -> Stream:
  """Returns the stream after the sites of one stage.

  Args:
    pools: for each site, what it reads, by the names that the first stage has.
    bits, scales: those of the stage's gates.
  """
  for i, (site, pool) in enumerate(zip(sites_of(model), pools)):
    gates = [bits[k] for k in range(site.gates.start, site.gates.stop)]
    scale = None if scales is None or not site.has_residual else scales[site.start]
    h = step(model, {'params': pool}, i, h, gates, scale)
  return h


def loss(
  model: nn.Module,
  pipeline: Pipeline,
  mean_loss: MeanLoss,
  params: Staged,
  bits: Bool[Array, 'n'],
  x: Inputs,
  y: Inputs,
  *,
  scales: Float[Array, 'n'] | None = None,
  around: Callable[..., tuple[Any, ...]] | None = None,
) -> tuple[Float[Array, ''], Bool[Array, 'ticks']]:
  """Returns the mean loss of one traced structure on a batch, inside `shard_map`: the same on every
  device.

  The gradient that a device takes of it is that of the sum of all devices' losses, P times the
  loss: `gradients.averaged_gradient` divides by P.

  Args:
    mean_loss: from outputs and targets of a microbatch to its loss, of which the mean is taken.
    params, bits, x, scales, around: as for `run_ticks`.
    y: targets [B, ...], or a pytree of them.

  Returns:
    The loss, and whether this device worked in each tick, bool [ticks].
  """
  targets = _microbatches(y, pipeline)

  def finish(outputs: Logits, number: Int[Array, '']) -> Float[Array, '']:
    return mean_loss(outputs, rows(targets, number))

  options: dict[str, Any] = {'scales': scales, 'around': around}
  values, worked = run_ticks(model, pipeline, params, x, bits, finish, **options)
  return jax.lax.psum(values.sum(), PIPE) / pipeline.microbatches, worked


def place_pool(
  model: nn.Module, variables: PyTree, mesh: Mesh, pipeline: Pipeline, x: Inputs
) -> PyTree:
  """Puts `{'params': pool}` on the mesh as `{'params': Staged}`, each device with its stages."""
  example = _example(x)
  staged = stack(staging(model, pipeline, example), processes.to_host(variables['params']))
  return {'params': mesh_.place(staged, mesh, pool_specs(model, pipeline, example))}


def over_mesh(model: nn.Module, mesh: Mesh, pipeline: Pipeline) -> Callable[..., Logits]:
  """Returns the forward pass in stages.

  Args:
    mesh: has the axis `pipe`; an axis `data`, if there is one, splits the batch.

  Returns:
    A function of (variables, x, structure), to be compiled, that gives the logits [B, ..., C]. The
    variables are as `place_pool` lays them out, and so is the gradient; the structure is in any
    form that `run.conditional` takes.
  """
  check_mesh(mesh, pipeline)
  by_row = PartitionSpec(DATA if DATA in mesh.axis_names else None)
  last_ticks = [  # the tick in which the last device ends each microbatch
    tick
    for tick in range(pipeline.ticks)
    for busy, repeat, _ in [pipeline.turn(tick, pipeline.devices - 1)]
    if busy and repeat == pipeline.repeats - 1
  ]

  def logits(variables: PyTree, x: Inputs, bits: Bool[Array, 'n']) -> Float[Array, 'B ... C']:
    outputs = lambda outputs, number: outputs
    values, _ = run_ticks(model, pipeline, variables['params'], x, bits, outputs)
    values = jax.lax.psum(values[np.array(last_ticks)], PIPE)
    return values.reshape(num_examples(x), *values.shape[2:])

  def run(variables: PyTree, x: Inputs, structure: StructureLike | ArrayLike) -> Logits:
    in_specs = ({'params': pool_specs(model, pipeline, _example(x))}, by_row, PartitionSpec())
    call = jax.shard_map(logits, mesh=mesh, in_specs=in_specs, out_specs=by_row, check_vma=False)
    return call(variables, x, traced_structure(structure, len(gate_names(model))))

  return run


def check_batch(size: int, pipeline: Pipeline) -> None:
  """Raises `UserError` for a device's batch that does not divide into the microbatches."""
  if size % pipeline.microbatches:
    raise UserError(
      f'a batch of {size} examples in {pipeline.microbatches} microbatches: expected a multiple of '
      f'{pipeline.microbatches}'
    )


def check_mesh(mesh: Mesh, pipeline: Pipeline) -> None:
  """Raises `UserError` where the mesh does not have as many devices along `pipe`."""
  if mesh.shape.get(PIPE, 1) != pipeline.devices:
    raise UserError(
      f'a mesh of axes {dict(mesh.shape)} for {pipeline.devices} pipe_devices: expected an axis '
      f'{PIPE!r} of as many'
    )


def _example(x: Inputs) -> Shapes:
  return shapes_of(x, num=1)


def _microbatches(batch: PyTree, pipeline: Pipeline) -> PyTree:
  """Returns a batch with an axis of microbatches before that of examples."""
  cut = lambda leaf: jnp.asarray(leaf).reshape(pipeline.microbatches, -1, *leaf.shape[1:])
  return jax.tree.map(cut, batch)


def _zeros(shapes: PyTree) -> PyTree:
  """Returns zeros of these shapes."""
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
