"""A network with gates in one structure that does not change."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float

from additive_jax.compress.steps import tupled
from additive_jax.errors import UserError, one_line
from additive_jax.gates.structure import Structure
from additive_jax.models import (
  BERT,
  DNA,
  GPT2,
  MLP,
  VGG,
  ConvNet,
  Decoder,
  DenseStack,
  LeNet,
  Transformer,
  ViT,
)
from additive_jax.models.additive import Additive, Inputs

# The networks that a file may name. Whatever else it names is neither imported nor called.
LIBRARY: dict[str, Any] = {
  kind.__name__: kind
  for kind in (
    BERT,
    ConvNet,
    Decoder,
    DenseStack,
    DNA,
    GPT2,
    LeNet,
    MLP,
    Transformer,
    VGG,
    ViT,
  )
}


class Fixed(nn.Module):
  """The outputs of one structure of a network, which takes no other.

  It reads those parameters that the structure reads, under the names that the network gives them;
  sites that are off need none.

  Attributes:
    network: the additive network.
    bits: of the structure.
  """

  network: Additive
  bits: tuple[bool, ...]

  def setup(self) -> None:
    nn.share_scope(self, self.network)

  def __call__(self, x: Inputs) -> Float[Array | np.ndarray, 'B ...']:
    return self.network(x, self.bits)

  @property
  def config(self) -> dict[str, Any]:
    """The network's class and fields and the structure, as JSON values.

    Raises:
      UserError: for a field that JSON cannot hold.
    """
    kind, fields = type(self.network), {}
    for field in dataclasses.fields(self.network):
      if field.init and field.name not in ('parent', 'name'):
        value = getattr(self.network, field.name)
        try:
          fields[field.name] = json.loads(json.dumps(value))
        except TypeError:
          raise UserError(
            f'{kind.__name__} with {field.name} {value!r}: expected fields of numbers, text and '
            'lists of them, from which a JSON config makes the network again'
          ) from None
    name = f'{kind.__module__}:{kind.__qualname__}'
    return {'model': name, 'fields': fields, 'structure': str(Structure(self.bits))}


def make_fixed(config: Mapping[str, Any], model: Callable[..., Additive] | None = None) -> Fixed:
  """Returns the network of `Fixed.config`.

  The config may come from a file that somebody else wrote, so that it names no code: a network that
  is not the library's comes from the caller.

  Args:
    config: names a class and gives its fields.
    model: the class, of a network of one's own.

  Raises:
    UserError: for a class that is neither, or that does not take the fields.

  >>> make_fixed(Fixed(aj.models.MLP(1, 4, 8, 3), (True,)).config).network.width
  4
  """
  try:
    path, fields, structure = config['model'], dict(config['fields']), config['structure']
    kind = _kind(path, model)
    _check_fields(path, kind, fields)
    network = kind(**{name: tupled(value) for name, value in fields.items()})
    return Fixed(network, Structure.from_string(structure).bits)
  except UserError:
    raise
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise UserError(
      f'network {str(config)[:200]} ({one_line(error)}): expected a class of the library, or the '
      'one that is given, and fields that it takes'
    ) from error


def _kind(path: str, model: Callable[..., Additive] | None) -> Any:
  """Returns the class of a network; `path` is `module:Class`."""
  module, _, name = path.partition(':')
  if model is not None:
    given = getattr(model, '__qualname__', repr(model))
    if given != name:
      raise UserError(f'network {path!r} and model={given}: expected the class of that name')
    return model
  if name not in LIBRARY or module.partition('.')[0] != 'additive_jax':
    raise UserError(
      f'network {path!r}: expected one of the library ({", ".join(LIBRARY)}); a class of your own '
      'is given as load(DIR, model=CLASS)'
    )
  return LIBRARY[name]


def _check_fields(path: str, kind: Any, fields: Mapping[str, Any]) -> None:
  known = [field.name for field in dataclasses.fields(kind) if field.init]
  known = [name for name in known if name not in ('parent', 'name')]
  if unknown := [name for name in fields if name not in known]:
    raise UserError(f'network {path!r} with {unknown}: expected fields out of {", ".join(known)}')
