"""A plain stack of dense layers, such as LeNet-300-100, whose units carry sub-activation gates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from additive_jax.errors import UserError
from additive_jax.gates.layers import sub_activation
from additive_jax.gates.sums import GateValue
from additive_jax.models.additive import Additive, Inputs, flat
from additive_jax.models.feed_forward import linear_pair
from additive_jax.models.kinds import (
  SUB_ACTIVATION,
  check_chunks,
  check_kinds,
  check_sizes,
  gate_names,
)

KINDS = (SUB_ACTIVATION,)


class Pair(nn.Module):
  """A site of two linear maps whose sums over channels or units are gates.

  Attributes:
    num_chunks: m, chunks of its input and output.

  >>> Pair(num_chunks=3).gates
  ('join_1', 'join_2')
  """

  num_chunks: int

  @property
  def gates(self) -> tuple[str, ...]:
    """The names of its gates, in order."""
    return gate_names(KINDS, self.num_chunks)


class DensePair(Pair):
  """A pair of dense layers: `W_2 act(W_1 x + b_1) + b_2`, and act again where a layer follows.

  Attributes:
    sizes: units of both layers, (H, E).
    layers: their names.
    last: whether its output are the logits.
    activation: act.

  >>> pair = DensePair(2, sizes=(8, 3), layers=('fc1', 'out'), last=True)
  >>> pool = jax.eval_shape(pair.init, jax.random.key(0), jnp.ones((1, 4)))
  >>> jax.tree.map(jnp.shape, pool['params']['fc1'])
  {'bias': (8,), 'kernel': (4, 8)}
  """

  sizes: tuple[int, ...]
  layers: tuple[str, ...]
  last: bool
  activation: Callable[[Array], Array] = nn.relu

  @nn.compact
  def __call__(
    self, h: Float[Array, 'B D'], gates: Sequence[GateValue] = ()
  ) -> Float[Array, 'B E']:
    layers = linear_pair((h.shape[-1], self.sizes[0]), self.sizes, names=self.layers)
    y = sub_activation(h, layers, gates, self.activation)
    return y if self.last else self.activation(y)


class DenseStack(Additive):
  """Dense layers `fc1`, `fc2`, …, with relu after each, and `out`, whose outputs are the logits.
  With hidden units (300, 100) it is LeNet-300-100. Source: LeCun et al. 1998, "Gradient-based
  learning applied to document recognition", section III.

  Sites are pairs of layers, such as `fc2_out`. Where the number of layers is odd, embed is the
  first of them; otherwise it flattens its input and does no more. The readout does nothing.

  Inputs: float [B, ...]; images are flattened, rows of a table pass through.

  Attributes:
    hidden: units of each hidden layer; one number for a single layer.
    num_classes: the number of logits.
    gates: ('sub_activation',), the one kind that a plain stack has.
    num_chunks: m, chunks of the input and of the output of each pair that sub-activation gates
      join; an input that no layer has changed must have as many numbers.

  >>> DenseStack((300, 100), num_classes=10).space.names
  ('fc2_out/join_1', 'fc2_out/join_2', 'fc2_out/join_3')
  """

  hidden: int | Sequence[int] = (300, 100)
  num_classes: int = dataclasses.field(kw_only=True)
  gates: Sequence[str] = KINDS
  num_chunks: int = 4

  def __post_init__(self):
    self.hidden = self.sizes[:-1]  # a module's fields must be hashable
    self.gates = check_kinds('dense_stack', self.gates, KINDS)
    super().__post_init__()
    if not self.hidden:
      raise UserError(f'hidden {self.hidden}: expected the units of one layer or more')
    check_sizes(hidden=min(self.hidden), num_classes=self.num_classes)
    # Every other layer ends a pair, and the next one begins.
    check_chunks(min(self.sizes[::-2]), self.num_chunks)

  @property
  def sizes(self) -> tuple[int, ...]:
    """Units of each layer, with the logits as the last."""
    hidden = (self.hidden,) if isinstance(self.hidden, int) else self.hidden
    return (*hidden, self.num_classes)

  def setup(self) -> None:
    sizes = self.sizes
    names = (*(f'fc{i + 1}' for i in range(len(sizes) - 1)), 'out')
    first = len(sizes) % 2
    self.stem = nn.Dense(sizes[0], name=names[0]) if first else None
    pairs = [(sizes[i : i + 2], names[i : i + 2]) for i in range(first, len(sizes), 2)]
    self.sites = [
      DensePair(self.num_chunks, pair, layers, pair is pairs[-1][0], name='_'.join(layers))
      for pair, layers in pairs
    ]

  def embed(self, x: Inputs) -> Float[Array, 'B D']:
    """Returns inputs as rows, through the first layer where no pair has it."""
    h = flat(x)
    return h if self.stem is None else nn.relu(self.stem(h))

  def readout(self, h: Float[Array, 'B C']) -> Float[Array, 'B C']:
    """Returns the logits as the last pair gave them."""
    return h
