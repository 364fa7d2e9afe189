"""What a step of training takes, by a formula: bytes on each device, FLOPs, bytes that move.

P is the pool and O what the optimizer keeps of it, as one device holds them; a device trains `k` of
the K slots, one after the other, each in `a` pieces. Before, during and after its slots it holds

  state         P + O
  sums          2 P with k > 1, of the slots so far and of the one at hand, which is added once it
                is known to be finite; P with a > 1, of the pieces
  ends          with `fsdp` and ka > 1 embed and readout, gathered once for all, and the zeros that
                the gradient of embed is added to
  backward      for the part where it is most: the activations of the parts before it, the gradients
                of those after it, and what it needs itself. That is its parameters, gathered, its
                gradient, not yet scattered, and what is computed again (`models.liveness`).
                Activations are of each site the stream that it takes, and the results of its
                matmuls; all else is computed again (`gates.sums.choose`)
  or update     the gradient, the new pool and the new state of the optimizer, before they take the
                place of the old

of which the last two do not meet. All gates are taken to be on.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from additive_jax.batches import num_examples
from additive_jax.gates.structure import Structure
from additive_jax.gates.sums import SAVED
from additive_jax.models.additive import embed, readout, sites_of, step
from additive_jax.models.batch_norm import of_batch
from additive_jax.models.costs import measure
from additive_jax.models.liveness import bytes_of, live_bytes, saved_bytes
from additive_jax.models.reads import Parts, parts
from additive_jax.models.surrounding import Mode, in_mode
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel.zero import HOST
from additive_jax.train.recipe import Recipe, Structures
from additive_jax.train.state import StateLayout

KNOWN = (mesh_.STRUCTURE, mesh_.DATA, mesh_.FSDP)  # the axes that the formula knows of


@dataclasses.dataclass(frozen=True)
class Forecast:
  """What a step takes with all gates on, see above; bytes are those of one device.

  Attributes:
    parameters, optimizer: the state.
    host: of the optimizer's, what lies in the host's memory.
    sums, ends, backward, update: in the course of a step.
    activations: after the forward pass; in `backward` too.
    flops: of the step, on all devices together: three forward passes of all slots.
    moved: bytes that a device receives, by the kind of collective.
  """

  parameters: int
  optimizer: int
  host: int
  sums: int
  ends: int
  activations: int
  backward: int
  update: int
  flops: float
  moved: dict[str, float]

  @property
  def temporaries(self) -> int:
    """All bytes but the state's, at their most."""
    return max(self.sums + self.ends + self.backward, self.update)

  @property
  def total(self) -> int:
    """All bytes on a device."""
    return self.parameters + self.optimizer + self.temporaries


def forecast(
  recipe: Recipe, layout: StateLayout, x: PyTree, y: PyTree, num_structures: int
) -> Forecast | None:
  """Returns what a step takes; None for losses and axes of a mesh that the formula does not know.

  Args:
    layout: of the state on a mesh.
    x, y: the shapes of the examples of one slot, [B, ...].
    num_structures: K.
  """
  mesh = layout.mesh
  plain = type(recipe.loss) is Structures and not recipe.loss.distill and not recipe.frozen
  if not plain or any(size > 1 and name not in KNOWN for name, size in mesh.shape.items()):
    return None
  pieces = recipe.accumulate
  parts_of_batch = mesh_.num_shares(mesh) * pieces
  share = lambda leaf: jax.ShapeDtypeStruct(
    (leaf.shape[0] // parts_of_batch, *leaf.shape[1:]), leaf.dtype
  )
  mine = jax.tree.map(share, (x, y))
  slots, spread = num_structures // mesh.shape[mesh_.STRUCTURE], mesh.shape.get(mesh_.FSDP, 1) > 1
  reads = parts(recipe.model, mine[0])
  ends = [reads.embed, reads.readout]
  whole, held = layout.abstract(), _held
  pool, kept, host = held(whole.params), held(whole.opt_state), held(whole.opt_state, HOST)
  dtype = None if recipe.dtype == 'float32' else recipe.dtype
  with in_mode(Mode(dtype)), of_batch():
    saved, working = _saved(recipe, reads), _working(recipe, reads, mine)
  count = num_structures * num_examples(x)
  all_on = Structure.all_on(recipe.model.space.num_gates)
  return Forecast(
    parameters=pool,
    optimizer=kept,
    host=host,
    sums=pool * (2 * (slots > 1) + (pieces > 1)),
    ends=(sum(map(bytes_of, ends)) + bytes_of(ends[0])) * (spread and slots * pieces > 1),
    activations=sum(saved),
    backward=_most(saved, working, mesh.shape.get(mesh_.FSDP, 1)),
    update=2 * pool + kept,
    flops=3 * count * measure(recipe.model, mine[0]).flops(all_on),
    moved=_moved(reads, layout, slots * pieces, pool),
  )


def _held(tree: PyTree, kind: str | None = None) -> int:
  """Returns the bytes of a tree of placed shapes that one device holds, or that lie in a memory of
  another kind on its behalf."""
  total = 0
  for leaf in jax.tree.leaves(tree):
    if (leaf.sharding.memory_kind == HOST) == (kind == HOST):
      part = jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
      total += bytes_of(part)
  return total


def _site(recipe: Recipe, index: int) -> Any:
  """Returns a site as a conditional step runs it, a function of its parameters and the stream."""
  gates = (True,) * len(sites_of(recipe.model)[index].names)
  run = lambda tree, h: step(recipe.model, {'params': tree}, index, h, gates)
  if not sites_of(recipe.model)[index].has_residual:
    return run
  return jax.checkpoint(run, policy=SAVED, prevent_cse=False)


def _saved(recipe: Recipe, reads: Parts) -> list[int]:
  """Returns the bytes that each part leaves for its backward pass."""
  sites = enumerate(zip(reads.sites, reads.streams))
  of_sites = [bytes_of(h) + saved_bytes(_site(recipe, i), tree, h) for i, (tree, h) in sites]
  return [0, *of_sites, bytes_of(reads.streams[-1])]


def _most(saved: list[int], working: list[tuple[PyTree, int]], among: int) -> int:
  """Returns the most bytes that a backward pass holds.

  Args:
    saved, working: of each part, in their order.
    among: over how many devices parameters are spread.
  """
  found, gradients = [], 0
  for kept, (tree, held) in reversed([*zip(np.cumsum(saved), working)]):
    whole = bytes_of(tree)
    # What it holds includes its whole gradient; gathered parameters come to it.
    found.append(int(kept) + gradients + held + whole * (among > 1))
    gradients += whole // among
  return max(found)


def _working(recipe: Recipe, reads: Parts, mine: tuple[PyTree, PyTree]) -> list[tuple[PyTree, int]]:
  """Returns for each part, in their order, its parameters and the most bytes that its backward pass
  holds at once."""
  model, (x, y), last = recipe.model, mine, reads.streams[-1]
  backward = lambda back, slope: _floats(back(slope))

  def of(run: Any, tree: PyTree, value: PyTree, slope: PyTree) -> tuple[PyTree, int]:
    floats = lambda tree, value: _floats(run(tree, value))
    back = jax.eval_shape(lambda tree, value: jax.vjp(floats, tree, value)[1], tree, value)
    return tree, live_bytes(backward, back, _floats(slope))

  def loss(tree: PyTree, h: Any, y: PyTree) -> Any:
    return recipe.losses(readout(model, {'params': tree}, h), y).mean()

  def first(tree: PyTree, x: PyTree) -> Any:
    return jax.vjp(lambda tree: _floats(embed(model, {'params': tree}, x)), tree)[1]

  slope_of_loss = jax.grad(loss, argnums=(0, 1), allow_int=True)
  ends = lambda *args: _floats(slope_of_loss(*args))
  back = jax.eval_shape(first, reads.embed, x)
  streams = reads.streams
  return [
    (reads.embed, live_bytes(backward, back, _floats(streams[0]))),
    *(of(_site(recipe, i), tree, streams[i], streams[i + 1]) for i, tree in enumerate(reads.sites)),
    (reads.readout, live_bytes(ends, reads.readout, last, y)),
  ]


def _floats(tree: PyTree) -> list[Any]:
  """Returns the leaves that gradients pass through: of a stream with a mask, not the mask."""
  return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def _moved(reads: Parts, layout: StateLayout, rounds: int, pool: int) -> dict[str, float]:
  """Returns the bytes that a device receives in a step, by the kind of collective, counted as
  `parallel.traffic` does.

  With `fsdp` each piece of each slot gathers a site forward and backward, and scatters its slope;
  the ends are gathered once for all.

  Args:
    rounds: pieces of slots that a device takes in turn.
  """
  mesh: Mesh = layout.mesh
  among = mesh.shape.get(mesh_.FSDP, 1)
  others = mesh.shape[mesh_.STRUCTURE] * mesh.shape[mesh_.DATA]
  sites = sum(map(bytes_of, reads.sites))
  ends = bytes_of(reads.embed) + bytes_of(reads.readout)
  ring = lambda count: (count - 1) / count
  found = {
    'all-gather': ring(among) * (2 * rounds * sites + ends)
    + ring(others) * pool * layout.storage.zero,
    'reduce-scatter': ring(among) * rounds * (sites + ends),
    'all-reduce': 2 * ring(others) * pool,
  }
  return {kind: size for kind, size in found.items() if size}
