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

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from additive_jax.errors import UserError
from additive_jax.gates.sums import SAVED
from additive_jax.gates.traced import traced_structure
from additive_jax.models.additive import embed, gate_names, readout, sites_of, step
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel import processes
from additive_jax.parallel.mesh import DATA, PIPE
from additive_jax.parallel.pipeline_schedule import Pipeline
from additive_jax.parallel.staging import Staged, pool_specs, stack, staging


def run_ticks(
  model,
  pipeline: Pipeline,
  params: Staged,
  x: jax.Array,
  bits: jax.Array,
  finish: Callable,
  *,
  scales=None,
  around: Callable | None = None,
):
  """What one device does in all ticks, inside `shard_map`.

  Args:
    params: this device's: stages of leaves [1, R, ...].
    x: inputs [B, ...], the same on all devices of `pipe`.
    bits: the structure, bool [n].
    finish: from the logits [B/M, ..., C] of a microbatch and its number to a pytree of arrays.
    scales: as for `run.conditional`.
    around: for measurements, called as `around(run, h, tick)` in place of `run(h)` for every tick,
      idle ones too; `run` gives a tuple whose first element is the stream.

  Returns:
    What `finish` gave, with a leading axis of ticks: zeros but for the ticks in which the last
    device ends a microbatch; and whether this device worked, bool [ticks].

  Raises:
    UserError: for a batch that does not divide into the microbatches; see `staging`.
  """
  count, devices = pipeline.microbatches, pipeline.devices
  example = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
  found = staging(model, pipeline, example)
  check_batch(len(x), pipeline)
  sites = sites_of(model)[: len(found.names[0])]
  micro = x.reshape(count, -1, *x.shape[1:])
  device = jax.lax.axis_index(PIPE)
  ends, own = {'params': params.ends}, jax.tree.map(lambda leaf: leaf[0], params.stages)
  stream = jax.eval_shape(lambda: embed(model, ends, micro[0]))
  nothing = _zeros(jax.eval_shape(lambda h: finish(readout(model, ends, h), jnp.int32(0)), stream))
  by_stage = lambda values: values.reshape(pipeline.stages, len(values) // pipeline.stages)

  def work(h, repeat, number):
    stage = repeat * devices + device
    enters, leaves = stage == 0, stage == pipeline.stages - 1
    h = jax.lax.cond(enters, lambda h: embed(model, ends, micro[number]), lambda h: h, h)
    values = by_stage(bits)[stage]
    factors = None if scales is None else by_stage(scales)[stage]
    for i, (site, name) in enumerate(zip(sites, found.names[0])):
      pool = params.ends | ({name: jax.tree.map(lambda a: a[repeat], own[i])} if name else {})
      scale = factors[site.start] if scales is not None and site.has_residual else None
      gates = [values[k] for k in range(site.gates.start, site.gates.stop)]
      h = step(model, {'params': pool}, i, h, gates, scale)
    last = lambda h: finish(readout(model, ends, h), number)
    return h, jax.lax.cond(leaves, last, lambda h: nothing, h), True

  # What the gradient of a branch needs is written in ticks that skip it too, as zeros.
  policy = None if pipeline.remat else SAVED
  work = jax.checkpoint(work, prevent_cse=False, policy=policy)
  circle = range(devices if pipeline.repeats > 1 else devices - 1)
  onward = [(i, (i + 1) % devices) for i in circle]

  def tick(h, now):
    busy, repeat, number = pipeline.turn(now, device)
    idle = lambda h, *_: (h, nothing, False)
    run = lambda h: jax.lax.cond(busy, work, idle, h, repeat, number)
    h, value, worked = run(h) if around is None else around(run, h, now)
    return jax.lax.ppermute(h, PIPE, onward), (value, worked)

  _, (values, worked) = jax.lax.scan(tick, _zeros(stream), jnp.arange(pipeline.ticks))
  return values, worked


def loss(
  model, pipeline: Pipeline, objective, params: Staged, bits, x, y, *, scales=None, around=None
):
  """Mean loss of one traced structure on a batch, inside `shard_map`: the same on every device.

  The gradient that a device takes of it is that of the sum of all devices' losses, P times the
  loss: `gradients.averaged_gradient` divides by P.

  Args:
    objective: see `objectives`.
    params, bits, x, scales, around: as for `run_ticks`.
    y: targets [B, ...].

  Returns:
    The loss, and whether this device worked in each tick, bool [ticks].
  """
  targets = y.reshape(pipeline.microbatches, -1, *y.shape[1:])

  def finish(outputs, number):
    return objective(outputs, targets[number])[0].mean()

  options = {'scales': scales, 'around': around}
  values, worked = run_ticks(model, pipeline, params, x, bits, finish, **options)
  return jax.lax.psum(values.sum(), PIPE) / pipeline.microbatches, worked


def place_pool(model, variables, mesh: Mesh, pipeline: Pipeline, x):
  """Puts `{'params': pool}` on the mesh as `{'params': Staged}`, each device with its stages."""
  example = _example(x)
  staged = stack(staging(model, pipeline, example), processes.to_host(variables['params']))
  return {'params': mesh_.place(staged, mesh, pool_specs(model, pipeline, example))}


def over_mesh(model, mesh: Mesh, pipeline: Pipeline) -> Callable:
  """The forward pass in stages.

  Args:
    mesh: has the axis `pipe`; an axis `data`, if there is one, splits the batch.

  Returns:
    A function of (variables, x, structure), to be compiled, that gives the logits [B, ..., C]. The
    variables are as `place_pool` lays them out, and so is the gradient; the structure is in any
    form that `run.conditional` takes.
  """
  check_mesh(mesh, pipeline)
  rows = PartitionSpec(DATA if DATA in mesh.axis_names else None)
  ends = [  # ticks in which the last device ends each microbatch
    tick
    for tick in range(pipeline.ticks)
    for busy, repeat, _ in [pipeline.turn(tick, pipeline.devices - 1)]
    if busy and repeat == pipeline.repeats - 1
  ]

  def logits(variables, x, bits):
    keep = lambda outputs, number: outputs
    values, _ = run_ticks(model, pipeline, variables['params'], x, bits, keep)
    values = jax.lax.psum(values[np.array(ends)], PIPE)
    return values.reshape(len(x), *values.shape[2:])

  def run(variables, x, structure):
    specs = {'params': pool_specs(model, pipeline, _example(x))}
    inputs = (specs, rows, PartitionSpec())
    call = jax.shard_map(logits, mesh=mesh, in_specs=inputs, out_specs=rows, check_vma=False)
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


def _example(x) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)


def _zeros(shapes):
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
