"""Lanes over a mesh: every device holds some lanes of the stream, and of the parameters the heads
and hidden units of those lanes.

XLA moves the bytes. The forward pass has one all-reduce for each lane gate that is on, and one for
the mean that the readout takes, unless the last gate has made all lanes equal; a gate that is off
moves nothing. The backward pass has one more for each on gate, and one for each parameter that all
devices have (norms, embedding, biases of a branch's output).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, Shaped

from additive_jax.batches import Shapes, cached, num_examples, shapes_of
from additive_jax.errors import UserError
from additive_jax.models import kinds
from additive_jax.models.additive import Inputs, Logits
from additive_jax.models.axes import axis_names
from additive_jax.models.kinds import check_divides
from additive_jax.models.surrounding import EMBED, Part, surrounding
from additive_jax.parallel.mesh import DATA, LANE

RULES = {'heads': LANE, 'hidden': LANE}


def lane_mesh(num_devices: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns the mesh [data, lane] with `num_devices` devices along `lane`, and the rest along
  `data`.

  >>> dict(lane_mesh(2, jax.devices()[:4]).shape)
  {'data': 2, 'lane': 2}

  Raises:
    UserError: when `num_devices` does not divide the devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  if num_devices < 1 or len(devices) % num_devices:
    raise UserError(
      f'a lane axis of {num_devices} on {len(devices)} devices: expected a number that divides them'
    )
  shape = (len(devices) // num_devices, num_devices)
  types = (AxisType.Auto, AxisType.Auto)
  return jax.make_mesh(shape, (DATA, LANE), axis_types=types, devices=devices)


def check_lanes(model: nn.Module, num_devices: int) -> None:
  """Raises `UserError` for a model that has no lane gates, or lanes that do not divide over the
  devices."""
  gates = tuple(getattr(model, 'gates', ()))
  if kinds.LANE not in gates:
    raise UserError(
      f'{type(model).__name__} with gates {gates} on a lane axis: expected a model with the gate '
      f'kind {kinds.LANE!r}'
    )
  check_divides('lanes', model.num_lanes, 'devices', num_devices)


@cached(maxsize=32)
def lane_specs(model: nn.Module, example: Shapes) -> PyTree:
  """Returns how the pool is laid out over the axis `lane`: a pytree of `PartitionSpec` like it,
  split along heads and hidden units.

  >>> model = aj.models.MLP(1, width=4, hidden=8, num_classes=3, gates=('lane',))
  >>> specs = lane_specs(model, jax.ShapeDtypeStruct((2, 6), jnp.float32))
  >>> tuple(specs['block_00']['in']['kernel']), tuple(specs['block_00']['out']['kernel'])
  ((None, 'lane'), ('lane', None))

  Args:
    example: the shape of a batch of inputs.
  """
  is_names = lambda node: isinstance(node, tuple)
  spec = lambda names: PartitionSpec(*(RULES.get(name) for name in names))
  return jax.tree.map(spec, axis_names(model, example), is_leaf=is_names)


def place_pool(model: nn.Module, variables: PyTree, mesh: Mesh, x: Inputs) -> PyTree:
  """Puts `{'params': pool}` on the mesh, each device with the shards of its own lanes."""
  put = lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec))
  return {'params': jax.tree.map(put, variables['params'], _specs(model, x))}


def over_mesh(way: Callable[..., Any], model: nn.Module, mesh: Mesh) -> Callable[..., Any]:
  """Returns a way to run (`run.static`, `run.conditional`, `run.masked`) with the lanes over a
  mesh.

  >>> model = aj.models.MLP(1, width=4, hidden=8, num_classes=3, gates=('lane',))
  >>> x, mesh = jnp.ones((2, 6)), lane_mesh(2, jax.devices()[:2])
  >>> variables = jax.eval_shape(model.init, jax.random.key(0), x)  # shapes, which cost nothing
  >>> run = over_mesh(aj.run.conditional, model, mesh)
  >>> jax.eval_shape(run, variables, x, jnp.array([True])).shape
  (2, 3)

  Args:
    way: takes (model, variables, x, structure).
    model: with lane gates.
    mesh: has the axis `lane`; an axis `data`, if there is one, splits the batch.

  Returns:
    A function of (variables, x, structure) that gives the logits [B, ..., C]; the pool's layout is
    that of `place_pool`, and the gradient's the same. Compiles like `way` does under `jax.jit`,
    where a static structure must be a static argument.

  Raises:
    UserError: see `check_lanes`; and for a mesh without the axis, or, when the result is called, a
      batch that its data axis does not divide.
  """
  if LANE not in mesh.axis_names:
    raise UserError(f'a mesh of axes {mesh.axis_names}: expected one with the axis {LANE!r}')
  check_lanes(model, mesh.shape[LANE])
  rows = PartitionSpec(DATA if DATA in mesh.axis_names else None)

  def run(variables: PyTree, x: Inputs, structure: Any) -> Logits:
    check_divides(
      'examples', num_examples(x), 'devices along the data axis', mesh.shape.get(DATA, 1)
    )
    specs = {'params': _specs(model, x)}

    def on_mesh(leaf: Shaped[Array | np.ndarray, '...'], spec: PartitionSpec) -> Array:
      return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    def around(
      model: nn.Module, part: Part, variables: PyTree, run: Callable[[PyTree], Any]
    ) -> Any:
      h = run(variables)
      return on_mesh(h, PartitionSpec(*rows, LANE)) if part == EMBED else h

    with surrounding(around):
      inputs = jax.tree.map(lambda leaf: on_mesh(leaf, rows), x)
      return way(model, jax.tree.map(on_mesh, variables, specs), inputs, structure)

  return run


def _specs(model: nn.Module, x: Inputs) -> PyTree:
  return lane_specs(model, shapes_of(x))
