"""The gradient of several structures in one pool: each from its own slot, averaged over slots and
devices.
"""

from __future__ import annotations

import collections
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from additive_jax.batches import Shapes
from additive_jax.models.additive import Inputs, initial_shapes, sites_of
from additive_jax.models.batch_norm import of_batch
from additive_jax.models.reads import parts
from additive_jax.models.surrounding import in_mode
from additive_jax.parallel import collectives, layout, mesh
from additive_jax.train.pieces import accumulated
from additive_jax.train.recipe import Facts, Recipe, Slot, reads_by_parts
from additive_jax.train.rule import without_frozen


class Averaged(NamedTuple):
  """The gradient of a step.

  Attributes:
    gradient: a pytree like the pool, or this device's part of it.
    loss: of each of this device's slots.
    finite: False for slots that were left out.
    facts: of the loss, averaged over all slots that are finite.
    num_finite: the finite slots of all devices.
    norm: of the gradient, where it is that of a slot and therefore known; None where it is not.
  """

  gradient: PyTree
  loss: Float[Array, 'slots']
  finite: Bool[Array, 'slots']
  facts: Facts
  num_finite: Int[Array, '']
  norm: Float[Array, ''] | None = None


class Slots(NamedTuple):
  """The inputs of one device for a step.

  Attributes:
    bits: the structures of its slots.
    x, y: its examples for each of its slots.
    keys: one for each slot, the same on all devices that share the slot; None for networks that are
      trained alone.
    step: of the training; None likewise.
    rates: the probability that each gate is on, where structures are drawn with keep rates.
    dropout: keys like `keys`, for what the network drops; None drops nothing.
    numbers: of the slots among those of all devices; None for networks that are trained alone.
  """

  bits: Bool[Array, 'slots n']
  x: Inputs
  y: PyTree
  keys: Key[Array, 'slots'] | None = None
  step: Int[Array, ''] | None = None
  rates: Float[Array, 'n'] | None = None
  dropout: Key[Array, 'slots'] | None = None
  numbers: Int[Array, 'slots'] | None = None


def usage(model: Any, x: Inputs | Shapes) -> PyTree:
  """Returns which parts of the model read each leaf of the pool.

  The leaves of the result, like the pool's, are bool [n + 1]: one per residual gate for its site
  (False for other gates), and a last one for embed, readout and the sites that no gate skips.

  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> usage(model, np.ones((1, 6), np.float32))['block_01']['in']['bias'].tolist()
  [False, True, False]
  """
  reads = parts(model, x)

  def paths(tree):
    return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}

  always = paths(reads.embed) | paths(reads.readout)
  readers = []
  for site, tree in zip(sites_of(model), reads.sites):
    if site.has_residual:
      readers += [paths(tree), *[set()] * site.num_inner]
    else:
      always |= paths(tree)
      readers += [set()] * site.num_inner
  readers.append(always)
  pool = initial_shapes(model, x)['params']
  return jax.tree_util.tree_map_with_path(
    lambda path, _: np.array([jax.tree_util.keystr(path) in reader for reader in readers]), pool
  )


def averaged_gradient(
  recipe: Recipe,
  params: PyTree,
  slots: Slots,
  *,
  axes: tuple[str, ...] = (),
  reads: PyTree | None = None,
  specs: PyTree | None = None,
  leaves: PyTree | None = None,
  one_device: bool = True,
) -> Averaged:
  """Returns the gradient of one step, averaged over its K slots, which P devices may share.

  Args:
    params: the pool, the same on every device but for leaves that are split, see `specs`.
    slots: this device's.
    axes: the names of the mesh axes inside `shard_map`; () outside.
    reads: for 'coverage', what `usage` gave.
    specs: how leaves are split over the axes, a pytree of `PartitionSpec` like the pool, for a
      model that joins what they give by `psum`, and for a pool in stages, a `staging.Staged`; None:
      every device has the whole pool.
    leaves: how the pool is split over `fsdp`, a pytree of `layout.Leaf`; None where it is not.
    one_device: as for `gradient_norm`.

  A slot whose loss or gradient is not finite on any device is left out.

  Devices along an axis other than `structure` share a slot. Where a `psum` joins them each
  differentiates the sum of their losses, for without replication checks (`check_vma=False`) `psum`
  is its own transpose. Summed over the devices that have a copy of a leaf and divided by how many
  share the slot, these are the gradients of the slot's mean loss, of split leaves as of whole ones.

  Two slots, of which the second has its last block off:

  >>> import optax
  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> recipe = Recipe(model, 'classification', optax.sgd(0.1))
  >>> x, y = jnp.ones((2, 5, 6)), jnp.zeros((2, 5), int)
  >>> params = jax.jit(model.init)(jax.random.key(0), x[0])['params']
  >>> slots = Slots(jnp.array([[True, True], [True, False]]), x, y)
  >>> averaged = jax.jit(averaged_gradient, static_argnums=0)(recipe, params, slots)
  >>> averaged.loss.shape, int(averaged.num_finite)
  ((2,), 2)
  """
  norm_of = functools.partial(gradient_norm, one_device=one_device)
  options = axes, leaves, specs, norm_of
  total, (loss, finite, facts, norm) = _sum_over_slots(recipe, params, slots, *options)
  # Clipped gradients were added up over the devices that share a slot already.
  over = tuple(axis for axis in axes if axis == mesh.STRUCTURE) if recipe.slot_clip_norm else axes
  total = collectives.all_reduce_sum(total, over, recipe.collective, specs)
  over_slots = lambda a: jax.lax.psum(a, mesh.STRUCTURE) if mesh.STRUCTURE in axes else a
  of_finite = lambda leaf: jnp.where(finite.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0).sum(0)
  count, facts = over_slots((finite.sum(), jax.tree.map(of_finite, facts)))
  facts = jax.tree.map(lambda leaf: leaf / jnp.maximum(count, 1), facts)
  if len(finite) == 1 and not axes:  # a count is 0 or 1, and divides by 1
    return Averaged(total, loss, finite, facts, count, norm)
  counts = jax.tree.map(lambda _: count, total)
  if recipe.average == 'coverage':
    counts = over_slots(_readers(slots.bits, finite, reads))
  gradient = jax.tree.map(lambda g, n: g / jnp.maximum(n, 1), total, counts)
  return Averaged(gradient, loss, finite, facts, count)


def _readers(bits, finite, reads):
  """Returns of each leaf how many finite slots have a structure that reads it."""
  on = jnp.pad(bits, ((0, 0), (0, 1)), constant_values=True)
  return jax.tree.map(lambda readers: (finite & (on & readers).any(-1)).sum(), reads)


def gradient_norm(gradient: PyTree, *, one_device: bool = True) -> Float[Array, '']:
  """Returns the global norm of a gradient.

  >>> print(gradient_norm({'a': jnp.full(2, 2.0), 'b': jnp.full(2, -1.0), 'c': jnp.sqrt(6.0)}))
  4.0

  Args:
    one_device: whether all arrays are on one device. Leaves of one shape are then added up
      together: a kernel for each shape compiles much faster than one for each leaf.
  """
  squares: dict[Any, list[Array]] = collections.defaultdict(list)
  for i, leaf in enumerate(jax.tree.leaves(gradient)):
    squares[(leaf.shape, leaf.dtype) if one_device else i].append(jnp.square(jnp.abs(leaf)))
  return jnp.sqrt(sum(functools.reduce(jnp.add, group).sum() for group in squares.values()))


def _sum_over_slots(recipe, params, slots, axes, leaves, specs, norm_of):
  """Returns this device's summed gradient, and of each of its slots the loss, whether it is finite,
  the facts, and the norm of the gradient, which is None where it may be another in the end."""
  split = tuple(axis for axis in axes if axis in mesh.BATCH)
  sharing = tuple(axis for axis in axes if axis != mesh.STRUCTURE)
  share = jax.lax.axis_index(split) if split else 0

  def add_slot(total, inputs):
    structure, x, y, key, dropout, number = inputs
    whole = recipe.task.total(y)
    if split and whole is not None:
      whole = jax.lax.pmean(whole, split)
    slot = Slot(
      structure,
      x,
      y,
      key,
      slots.step,
      slots.rates,
      split,
      share,
      dropout=dropout,
      total=whole,
      number=number,
    )
    with of_batch(split):
      (loss, facts), gradient = _gradient(recipe, params, slot, leaves)
    norm = norm_of(gradient)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    if sharing:  # these devices run the same structure, so they arrive here together
      finite = jax.lax.pmin(finite.astype(jnp.int32), sharing) > 0
      gradient = jax.tree.map(lambda g: g / jax.lax.axis_size(sharing), gradient)
    if recipe.slot_clip_norm:
      gradient = collectives.all_reduce_sum(gradient, sharing, recipe.collective, specs)
      gradient = _clipped(gradient, recipe.slot_clip_norm, sharing, specs)
    if split:
      loss, facts = jax.lax.pmean((loss, facts), split)
    if total is None:
      return gradient, (loss, finite, facts, None if recipe.slot_clip_norm or axes else norm)
    add = lambda t, g: t + jnp.where(finite, g, 0)
    return jax.tree.map(add, total, gradient), (loss, finite, facts, None)

  by_slot = slots.bits, slots.x, slots.y, slots.keys, slots.dropout, slots.numbers
  if len(slots.bits) > 1:
    return jax.lax.scan(add_slot, jax.tree.map(jnp.zeros_like, params), by_slot)
  total, values = add_slot(None, jax.tree.map(lambda a: a[0], by_slot))
  if axes:  # without others to add to, the caller drops the whole step instead
    total = jax.tree.map(lambda g: jnp.where(values[1], g, 0), total)
  *values, norm = values
  return total, (*jax.tree.map(lambda a: a[None], values), norm)


def _clipped(gradient, limit, sharing, specs):
  """Returns a slot's gradient, scaled down to a global norm of at most `limit`.

  Args:
    gradient: of the whole slot, the same on all devices that share it but for leaves that are split
      over them.
    sharing: the axes of these devices.
    specs: how leaves are split, as for `averaged_gradient`.
  """
  squares = [jnp.square(jnp.abs(leaf)).sum() for leaf in jax.tree.leaves(gradient)]
  if specs is not None:
    for i, spec in enumerate(jax.tree.structure(gradient).flatten_up_to(specs)):
      if over := tuple(axis for axis in jax.tree.leaves(tuple(spec)) if axis in sharing):
        squares[i] = jax.lax.psum(squares[i], over)
  norm = jnp.sqrt(sum(squares))
  scale = limit / jnp.maximum(norm, limit)  # at most 1
  return jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradient)


def _gradient(recipe, params, slot, leaves):
  """Returns loss, facts and gradient of a slot. Losses that read the pool by themselves get it
  whole."""

  def of_piece(params, piece):
    with in_mode(recipe.mode(piece)):
      values, gradient = recipe.loss.gradient(recipe, params, piece)
      return values, without_frozen(gradient, recipe.frozen)

  if leaves is None or reads_by_parts(recipe.loss):
    return accumulated(recipe, slot, functools.partial(of_piece, params))
  whole = jax.tree.map(layout.gathered, params, leaves)
  values, gradient = accumulated(recipe, slot, functools.partial(of_piece, whole))
  return values, jax.tree.map(layout.scattered, gradient, leaves)


def cosines(
  recipe: Recipe, params: PyTree, bits: Bool[Array, 'K n'], x: Inputs, y: PyTree
) -> Float[Array, 'K K']:
  """Returns the cosines between the gradients of K structures on one batch.

  Where a parameter is read by one of two structures only, it counts as zero in the other's
  gradient.

  >>> import optax
  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> recipe = Recipe(model, 'classification', optax.sgd(0.1))
  >>> x, y = jnp.ones((5, 6)), jnp.zeros(5, int)
  >>> params = jax.jit(model.init)(jax.random.key(0), x)['params']
  >>> table = cosines(recipe, params, jnp.array([[True, True], [True, False]]), x, y)
  >>> table.diagonal().round(3).tolist(), bool(table[0, 1] < 1)
  ([1.0, 1.0], True)
  """

  def flat(inputs):
    structure, number = inputs
    with of_batch():
      _, gradient = recipe.loss.gradient(recipe, params, Slot(structure, x, y, number=number))
    return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(gradient)])

  gradient = jax.lax.map(flat, (bits, jnp.arange(len(bits))))
  norm = jnp.linalg.norm(gradient, axis=1, keepdims=True)
  unit = gradient / jnp.maximum(norm, jnp.finfo(gradient.dtype).tiny)
  return jnp.matmul(unit, unit.T, precision='highest')
