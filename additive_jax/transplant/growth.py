"""The pool of a small model in a large one that computes the same, and the way back.

Width grows by copies of units (`copies`), depth by blocks that add nothing yet.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from additive_jax.errors import UserError, user_errors
from additive_jax.files.journal import replace_file
from additive_jax.files.rundir import WRITABLE
from additive_jax.gates.structure import Structure, parse
from additive_jax.models.additive import Inputs
from additive_jax.transplant.copies import Copies, copied, merged, parameters
from additive_jax.transplant.pairs import Pairs, Place, pair, params_of
from additive_jax.transplant.wiring import WRITES, Leaves

DEPTHS = ('zero', 'gated')


@dataclasses.dataclass(frozen=True, eq=False)
class Transplant:
  """A pool made from that of another model.

  >>> small, large = (aj.models.MLP(n, 4 * n, 8 * n, num_classes=3) for n in (1, 2))
  >>> pools = [model.init(jax.random.key(0), jnp.ones((2, 5))) for model in (small, large)]
  >>> grown = grow(small, pools[0], large, pools[1], key=jax.random.key(1), depth='gated')
  >>> grown.rule, grown.exact
  ('grow stream 4→8, hidden 8→16, depth 1→2 (gated, spread)', True)
  >>> grown.structure()  # the new block is off
  Structure('10')

  Attributes:
    variables: `{'params': pool}` of the new model.
    rule: how it was made, in words.
    exact: whether the new model computes what the old one does by construction, to rounding.
    pairs: which part became which.
    copies: for each space of the new model, which of the old units its units are.
    depth: 'zero' or 'gated', how new blocks were made.
  """

  variables: PyTree
  rule: str
  exact: bool
  pairs: Pairs
  copies: Mapping[str, Copies]
  depth: str = 'zero'

  def structure(self, structure: Any = None) -> Structure:
    """Returns the structure of the new model that computes what `structure` of the old one does;
    None is all-on. After `depth='gated'` the new blocks are off in it."""
    return self.pairs.structure(structure, self.depth)


@dataclasses.dataclass(frozen=True)
class Receipt:
  """How far the logits of two models are apart on a batch; as text, one line.

  Attributes:
    rule: how the second was made of the first.
    exact: whether the rule is exact.
    max_difference: max |Δoutput| between both models.
    num_examples: in the batch.
    max_logit: max |logit| of the first model, by which rounding grows.

  >>> print(Receipt('cut MLP: hidden 48→13', True, 1.9e-6, 64, 8.25))
  cut MLP: hidden 48→13 (exact): max |Δoutput| 1.9e-06 of outputs up to 8.2 on 64 examples
  """

  rule: str
  exact: bool
  max_difference: float
  num_examples: int
  max_logit: float

  def __str__(self) -> str:
    kind = 'exact' if self.exact else 'not exact'
    examples = f'{self.num_examples} example{"" if self.num_examples == 1 else "s"}'
    difference = f'max |Δoutput| {self.max_difference:.2g} of outputs up to {self.max_logit:.2g}'
    return f'{self.rule} ({kind}): {difference} on {examples}'

  def save(self, directory: str | Path) -> Path:
    """Writes `receipt.json`, whole or not at all, into a directory, which is made if it is not
    there: beside the checkpoints of a training that starts from the new model, say.

    Raises:
      UserError: when it cannot be written.
    """
    path = Path(directory) / 'receipt.json'
    with user_errors('write', path, WRITABLE):
      replace_file(path, (json.dumps(dataclasses.asdict(self), indent=2) + '\n').encode())
    return path


def grow(
  small_model: nn.Module,
  small: PyTree,
  large_model: nn.Module,
  large: PyTree,
  *,
  key: PRNGKeyArray,
  depth: str = 'zero',
  place: Place = 'spread',
  unequal: float = 0.5,
) -> Transplant:
  """Returns the pool of a small model in a large one that computes the same logits.

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

  >>> small, large = (aj.models.MLP(n, 4 * n, 8 * n, num_classes=3) for n in (1, 2))
  >>> x = jnp.ones((2, 5))
  >>> before, fresh = (model.init(jax.random.key(0), x) for model in (small, large))
  >>> grown = aj.transplant.grow(small, before, large, fresh, key=jax.random.key(1))
  >>> aj.transplant.receipt(grown, small, before, large, x).max_difference < 1e-5
  True
  """
  if depth not in DEPTHS:
    raise UserError(f'depth {depth!r}: expected one of {", ".join(DEPTHS)}')
  if not 0 <= unequal < 1:
    raise UserError(f'unequal {unequal}: expected a number in [0, 1)')
  pairs = pair(small_model, small, large_model, large, place=place)
  for old, new in pairs.sites:
    if depth == 'gated' and old is None and not new.has_residual:
      raise UserError(
        f"depth 'gated' with a new site {new.label} of gates {new.names}: expected a residual "
        "gate, or depth 'zero'"
      )
  copies = {
    name: copied(name, sizes, pairs.new.streams.get(name), key, unequal)
    for name, sizes in pairs.sizes.items()
  }
  where = place if isinstance(place, str) else f'at {", ".join(map(str, place))}'
  deeper = f' ({depth}, {where})' if pairs.depths[0] < pairs.depths[1] else ''
  leaves, initial = pairs.old.flat(params_of(small)), pairs.new.flat(params_of(large))
  variables = new_variables(pairs, copies, leaves, initial, depth)
  return Transplant(variables, f'grow {pairs}{deeper}', True, pairs, copies, depth)


def merge(grown: Transplant, large: PyTree) -> Transplant:
  """Returns the way back from `grow`: copies are taken together, pads and new blocks left out.

  The large pool as it was grown gives back the small one. Once it has been trained, what comes back
  computes something else than it does, but is the nearest start for the small model: what read the
  copies of a unit is summed, what wrote them averaged.

  >>> small, large = (aj.models.MLP(n, 4 * n, 8 * n, num_classes=3) for n in (1, 2))
  >>> pools = [model.init(jax.random.key(0), jnp.ones((2, 5))) for model in (small, large)]
  >>> grown = grow(small, pools[0], large, pools[1], key=jax.random.key(1))
  >>> back = merge(grown, grown.variables)
  >>> jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.allclose(a, b)), back.variables, pools[0]))
  True

  Args:
    grown: the result of `grow`.
    large: `{'params': pool}` of the large model, trained or not.

  Raises:
    UserError: for a pool of other shapes.
  """
  pairs, pool = grown.pairs, params_of(large)
  pool_shapes, grown_shapes = pairs.new.shapes(pool), pairs.shapes[1]
  for path in sorted(pool_shapes.keys() | grown_shapes):
    shape, expected = (shapes.get(path, 'no such leaf') for shapes in (pool_shapes, grown_shapes))
    if shape != expected:
      raise UserError(
        f'leaf {path}: found {shape}, expected {expected} as in the pool that was grown'
      )
  leaves, back = pairs.new.flat(pool), pairs.back()
  small = {
    name: merged(leaves[path], pairs.new.axes[path], grown.copies).astype(leaves[path].dtype)
    for name, path in back.origin.items()
    if path is not None
  }
  variables = {'params': jax.tree.map(jnp.asarray, pairs.old.pool(small))}
  return Transplant(variables, f'merge {back}', False, back, {})


def receipt(
  transplant: Transplant,
  old_model: nn.Module,
  old: PyTree,
  new_model: nn.Module,
  x: Inputs,
  structure: Any = None,
) -> Receipt:
  """Compares the logits of both models.

  >>> small, large = (aj.models.MLP(n, 4 * n, 8 * n, num_classes=3) for n in (1, 2))
  >>> x = jnp.ones((2, 5))
  >>> pools = [model.init(jax.random.key(0), x) for model in (small, large)]
  >>> grown = grow(small, pools[0], large, pools[1], key=jax.random.key(1))
  >>> found = receipt(grown, small, pools[0], large, x)
  >>> found.num_examples, found.exact, found.max_difference < 1e-5
  (2, True, True)

  Args:
    transplant: that made the new model's pool.
    old_model, old: the model and the `{'params': pool}` that it was made from.
    new_model: the other one.
    x: a batch of inputs.
    structure: of the old model, None for all-on; the new one runs in `transplant.structure` of it.
  """
  count = transplant.pairs.gates[0]
  structure = Structure.all_on(count) if structure is None else parse(structure, count)
  before = _logits(old_model, old, x, structure)
  after = _logits(new_model, transplant.variables, x, transplant.structure(structure))
  return compare(transplant.rule, transplant.exact, before, after)


def compare(
  rule: str, exact: bool, before: Float[Array, 'B *rest'], after: Float[Array, 'B *rest']
) -> Receipt:
  """Returns the receipt of two models' logits on one batch."""
  difference, largest = (float(jnp.abs(a).max()) for a in (before - after, before))
  return Receipt(rule, exact, difference, len(before), largest)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _logits(model, variables, x, structure):
  return model.apply(variables, x, structure)


def new_variables(
  pairs: Pairs, copies: Mapping[str, Copies], leaves: Leaves, initial: Leaves, depth: str = 'zero'
) -> PyTree:
  """Returns `{'params': pool}` of the new model.

  Args:
    pairs: of the models.
    copies: the units of each space.
    leaves: of the old pool.
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
  return {'params': jax.tree.map(jnp.asarray, pairs.new.pool(new))}
