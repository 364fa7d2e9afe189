"""The sites of networks of layers of attention and a feed-forward branch: one for each branch, or
one for each layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
from jaxtyping import Array, Float, PyTree

from additive_jax.errors import UserError
from additive_jax.gates.sums import GateValue
from additive_jax.models.kinds import (
  LANE,
  RESIDUAL,
  SUB_ACTIVATION,
  check_chunks,
  check_divides,
  check_sizes,
)
from additive_jax.models.side import side_of

SUBLAYER, LAYER = SITES = ('sublayer', 'layer')


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  'gelu': functools.partial(nn.gelu, approximate=False),
  'gelu_new': nn.gelu,
  'gelu_pytorch_tanh': nn.gelu,
  'relu': nn.relu,
  'silu': nn.silu,
}


def activation_of(name: str) -> Callable[[Array], Array]:
  """Returns an activation by its name in configs of pretrained networks.

  >>> float(activation_of('relu')(jnp.array(-1.0)))
  0.0
  """
  if name not in ACTIVATIONS:
    raise UserError(f'activation {name!r}: expected one of {", ".join(ACTIVATIONS)}')
  return ACTIVATIONS[name]


class WholeLayer(nn.Module):
  """Attention and a feed-forward branch under one residual gate."""

  attention: nn.Module
  mlp: nn.Module

  gates: ClassVar[tuple[str, ...]] = (RESIDUAL,)
  casts: ClassVar[bool] = True

  def __call__(
    self, h: Float[Array, 'B T D'], gates: Sequence[GateValue] = (), side: PyTree | None = None
  ) -> Float[Array, 'B T D']:
    h = self.attention(h, (), **side_of(self.attention, side))
    return self.mlp(h, (), **side_of(self.mlp, side))


def layer_sites(
  num_layers: int,
  sites: str,
  attention: Callable[..., nn.Module],
  mlp: Callable[..., nn.Module],
  kinds: Sequence[str],
) -> list[nn.Module]:
  """Returns the sites of a network of layers, in its `setup`.

  Args:
    num_layers: how many.
    sites: 'sublayer' or 'layer'.
    attention, mlp: from the number of a layer, kinds of gates and options of a Flax module to it.
    kinds: of gates; inside of a whole layer there are none.
  """
  digits = max(2, len(str(num_layers - 1)))
  modules: list[nn.Module] = []
  for i in range(num_layers):
    name = f'layer_{i:0{digits}}'
    if sites == LAYER:  # modules without a parent become the fields of the layer
      branches = attention(i, (), parent=None), mlp(i, (), parent=None)
      modules.append(WholeLayer(*branches, name=name))
    else:
      branch_kinds = tuple(kind for kind in kinds if kind != SUB_ACTIVATION)
      modules.append(attention(i, branch_kinds, name=f'{name}__attention'))
      modules.append(mlp(i, tuple(kinds), name=f'{name}__mlp'))
  return modules


def check_layer_sites(model: Any, num_groups: int, hidden: int) -> None:
  """Raises `UserError` for sites or gates that do not fit a network.

  Args:
    model: has the fields `sites_by`, `gates`, `num_chunks`, `num_lanes` and `width`.
    num_groups: heads, or groups of them, that lanes share out.
    hidden: units that lanes share out.
  """
  if model.sites_by not in SITES:
    raise UserError(f'sites_by {model.sites_by!r}: expected one of {", ".join(SITES)}')
  if model.sites_by == LAYER and model.gates != (RESIDUAL,):
    raise UserError(f'gate kinds {model.gates} of whole layers: expected residual alone')
  if SUB_ACTIVATION in model.gates:
    check_chunks(model.width, model.num_chunks)
  if LANE in model.gates:
    check_sizes(num_lanes=model.num_lanes)
    check_divides('heads or groups of heads', num_groups, 'lanes', model.num_lanes)
    check_divides('hidden units', hidden, 'lanes', model.num_lanes)
