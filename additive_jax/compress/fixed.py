"""A network with gates in one structure that does not change."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float, Num

from additive_jax.compress.steps import tupled
from additive_jax.errors import UserError
from additive_jax.gates.structure import Structure
from additive_jax.models.additive import Additive


class Fixed(nn.Module):
  """The logits of one structure of a network, which takes no other.

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

  def __call__(self, x: Num[Array | np.ndarray, 'B ...']) -> Float[Array | np.ndarray, 'B ...']:
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


def make_fixed(config: Mapping[str, Any]) -> Fixed:
  """Returns the network of `Fixed.config`.

  Raises:
    UserError: for a class that is not there, or that does not take the fields.
  """
  module, _, name = config['model'].partition(':')
  try:
    kind = getattr(importlib.import_module(module), name)
    network = kind(**{key: tupled(value) for key, value in config['fields'].items()})
  except (ImportError, AttributeError, TypeError, ValueError) as error:
    raise UserError(
      f'network {config["model"]} ({error}): expected a class that can be imported and takes '
      f'{config["fields"]}'
    ) from error
  return Fixed(network, Structure.from_string(config['structure']).bits)
