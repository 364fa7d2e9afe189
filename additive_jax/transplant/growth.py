"""The pool of a small model in a large one that computes the same, and the way back.

Width grows by copies of units (`copies`), depth by blocks that add nothing yet.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from additive_jax.errors import UserError
from additive_jax.gates.structure import Structure, parse
from additive_jax.transplant.copies import Copies, copied, merged, parameters
from additive_jax.transplant.pairs import Pairs, pair, params_of
from additive_jax.transplant.wiring import WRITES, flat, flat_shapes, unflat

DEPTHS = ('zero', 'gated')


@dataclasses.dataclass(frozen=True, eq=False)
class Transplant:
  """A pool made from that of another model.

  Attributes:
    variables: `{'params': pool}` of the new model.
    rule: how it was made, in words.
    exact: whether the new model computes what the old one does by construction, to rounding.
    pairs: which part became which.
    copies: for each space of the new model, which of the old units its units are.
    depth: 'zero' or 'gated', how new blocks were made.
  """

  variables: Any
  rule: str
  exact: bool
  pairs: Pairs
  copies: Mapping[str, Copies]
  depth: str = 'zero'

  def structure(self, structure=None) -> Structure:
    """The structure of the new model that computes what `structure` of the old one does; None is
    all-on. After `depth='gated'` the new blocks are off in it."""
    return self.pairs.structure(structure, self.depth)


@dataclasses.dataclass(frozen=True)
class Receipt:
  """What a transplant gave on a batch; as text, one line.

  Attributes:
    rule: of the transplant.
    exact: whether the rule is exact.
    max_difference: max |Δlogit| between both models.
    num_examples: in the batch.
    max_logit: max |logit| of the old model, by which rounding grows.
  """

  rule: str
  exact: bool
  max_difference: float
  num_examples: int
  max_logit: float

  def __str__(self) -> str:
    kind = 'exact' if self.exact else 'not exact'
    examples = f'{self.num_examples} example{"" if self.num_examples == 1 else "s"}'
    apart = f'max |Δlogit| {self.max_difference:.2g} of logits up to {self.max_logit:.2g}'
    return f'{self.rule} ({kind}): {apart} on {examples}'


def grow(
  small_model,
  small,
  large_model,
  large,
  *,
  key: jax.Array,
  depth: str = 'zero',
  place: str | Sequence[int] = 'spread',
  unequal: float = 0.5,
) -> Transplant:
  """The pool of a small model in a large one that computes the same logits.

  The width of the stream, hidden units, heads, units of a head (not with rope), channels and the
  number of blocks may grow, one or all of them, to any size. All structures agree, not only all-on;
  but those with sub-activation gates off only where the stream's n' units are a multiple of its n,
  and these of the number of chunks, as the chunks are others otherwise.

  Args:
    small_model, small: the model and its `{'params': pool}`.
    large_model, large: the model and its initial pool, which gives new blocks their parameters and
      what reads pads its small random numbers.
    key: of the shares of copies.
    depth: new blocks start with 'zero' for all that they write to the stream, or as in `large` but
      'gated' off: the result's `structure()` tells which gates are off.
    place: new blocks are 'spread' evenly between the old, or at the 'end'; or the numbers of the
      large model's blocks that the old ones become, such as `narrowed` gives.
    unequal: in [0, 1), how far the shares of copies differ: `copies.copied`. With 0, copies stay
      equal for ever.

  Raises:
    UserError: where the small model does not fit into the large one, or for bad options.
  """
  if depth not in DEPTHS:
    raise UserError(f'depth {depth!r}: expected one of {", ".join(DEPTHS)}')
  if not 0 <= unequal < 1:
    raise UserError(f'unequal {unequal}: expected a number in [0, 1)')
  pairs = pair(small_model, small, large_model, large, place=place)
  if depth == 'gated':
    for old, new in pairs.sites:
      if old is None and not new.has_residual:
        raise UserError(
          f"depth 'gated' with a new site {new.label} of gates {new.names}: expected a residual "
          "gate, or depth 'zero'"
        )
  copies = {
    name: copied(name, *sizes, pairs.new.streams.get(name), key, unequal)
    for name, sizes in pairs.sizes.items()
  }
  where = place if isinstance(place, str) else f'at {", ".join(map(str, place))}'
  how = f' ({depth}, {where})' if pairs.depths[0] < pairs.depths[1] else ''
  leaves, initial = flat(params_of(small), pairs.old), flat(params_of(large), pairs.new)
  pool = new_pool(pairs, copies, leaves, initial, depth)
  return Transplant({'params': pool}, f'grow {pairs}{how}', True, pairs, copies, depth)


def merge(grown: Transplant, large) -> Transplant:
  """The way back from `grow`: copies are taken together, pads and new blocks left out.

  The large pool as it was grown gives back the small one. Once it has been trained, what comes back
  computes something else than it does, but is the nearest start for the small model: what read the
  copies of a unit is summed, what wrote them averaged.

  Args:
    grown: what `grow` returned.
    large: `{'params': pool}` of the large model, trained or not.

  Raises:
    UserError: for a pool of other shapes.
  """
  pairs = grown.pairs
  pool = params_of(large)
  given = flat_shapes(pool, pairs.new)
  for path in sorted(given.keys() | pairs.shapes[1]):
    found, wanted = (shapes.get(path, 'no such leaf') for shapes in (given, pairs.shapes[1]))
    if found != wanted:
      raise UserError(
        f'leaf {path}: found {found}, expected {wanted} as in the pool that was grown'
      )
  leaves, back = flat(pool, pairs.new), pairs.back()
  found = {
    name: merged(leaves[path], pairs.new.axes[path], grown.copies).astype(leaves[path].dtype)
    for name, path in back.origin.items()
  }
  pool = jax.tree.map(jnp.asarray, unflat(found, pairs.old))
  return Transplant({'params': pool}, f'merge {back}', False, back, {})


def receipt(
  transplant: Transplant, old_model, old, new_model, x: jax.Array, structure=None
) -> Receipt:
  """Compares the logits of both models.

  Args:
    transplant: what made the new model's pool.
    old_model, old: the model and the `{'params': pool}` that it was made from.
    new_model: the other one.
    x: a batch of inputs, [B, ...].
    structure: of the old model, None for all-on; the new one runs in `transplant.structure` of it.
  """
  count = transplant.pairs.gates[0]
  structure = Structure.all_on(count) if structure is None else parse(structure, count)
  before = _logits(old_model, old, x, structure)
  after = _logits(new_model, transplant.variables, x, transplant.structure(structure))
  return compare(transplant.rule, transplant.exact, before, after)


def compare(rule: str, exact: bool, before: jax.Array, after: jax.Array) -> Receipt:
  """The receipt of two models' logits [B, ...] on one batch."""
  difference, largest = (float(jnp.abs(a).max()) for a in (before - after, before))
  return Receipt(rule, exact, difference, len(before), largest)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _logits(model, variables, x, structure):
  return model.apply(variables, x, structure)


def new_pool(pairs: Pairs, copies: Mapping[str, Copies], leaves, initial, depth: str = 'zero'):
  """The pool of the new model.

  Args:
    copies: the units of each space.
    leaves: of the old pool, by name.
    initial: of an initial pool of the new model.
    depth: with 'zero', what new blocks write to a stream is zero.
  """
  new = {}
  for path, fresh in initial.items():
    axes, name = pairs.new.axes[path], pairs.origin[path]
    written = {axis.space for axis in axes if axis is not None and axis.role == WRITES}
    if name is not None:
      leaf = parameters(leaves[name], axes, copies, fresh)
    elif depth == 'zero' and written & pairs.new.streams.keys():
      leaf = np.zeros_like(fresh)
    else:
      leaf = fresh
    new[path] = leaf.astype(fresh.dtype)
  return jax.tree.map(jnp.asarray, unflat(new, pairs.new))
