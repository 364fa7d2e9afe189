"""What a family of pretrained networks is: how its configs name sizes, and which tensors are which
parameters."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from additive_jax.errors import UserError
from additive_jax.models.additive import Additive, initial_shapes
from additive_jax.models.layer_sites import LAYER
from additive_jax.pretrained.leaves import Leaf, Sizes

Config = dict[str, Any]
LIST = 'layer_types'  # of a config: one entry for each layer


@dataclasses.dataclass(frozen=True)
class Family:
  """A family of networks.

  Attributes:
    name: `model_type` of its configs.
    architectures: the classes of the reference implementation that are known, and the prefix of
      their tensors' names.
    network: the class of its networks.
    model: from a config and options (`sites_by`, `gates`) to a network.
    config: from a network to a config.
    ends, layers: the leaves of embedding and readout, and those of each layer.
    layer_name: of tensors: 'model.layers.{}.'.
    num_layers: the config's name of the number of layers.
    outputs: of a branch the leaves that are zero in one that adds nothing.
    sizes: from a network to the sizes of axes that leaves join.
    constants: patterns of tensors that older files hold and no network reads.
    carried: patterns of tensors that are kept for export, such as a pooler's.
    example: from a network to the shape and dtype of an input.
    tied: the tensor that a tied readout may have beside the embedding, and the embedding's.
  """

  name: str
  architectures: Mapping[str, str]
  network: type[Any]
  model: Callable[..., Additive]
  config: Callable[[Any], Config]
  ends: tuple[Leaf, ...]
  layers: tuple[Leaf, ...]
  layer_name: str
  num_layers: str
  outputs: Mapping[str, tuple[str, ...]]
  example: Callable[[Any], Any]
  sizes: Callable[[Any], Sizes] = lambda model: {}
  constants: tuple[str, ...] = ()
  carried: tuple[str, ...] = ()
  tied: tuple[str, str] | None = None

  def architecture(self, config: Config) -> str:
    """Returns the class of the reference implementation; raises `UserError` for an unknown one."""
    given = config.get('architectures') or list(self.architectures)[:1]
    if len(given) != 1 or given[0] not in self.architectures:
      raise UserError(
        f'architectures {given} of a {self.name} config: expected one of '
        f'{", ".join(self.architectures)}'
      )
    return given[0]

  def prefix(self, config: Config, names: Sequence[str] | None = None) -> str:
    """Returns what the names of tensors begin with; files may leave it out."""
    prefix = self.architectures[self.architecture(config)]
    if names is not None and not any(name.startswith(prefix) for name in names):
      return ''
    return prefix

  def places(self, model: Additive, prefix: str) -> Iterator[Place]:
    """Yields each leaf of the pool with its tensors.

    Raises:
      UserError: where the pool has a leaf that the family has no tensor for.
    """
    shapes = pool_shapes(model, self.example(model))
    tables = [(None, self.ends), *((i, self.layers) for i in range(model.num_layers))]
    seen = set()
    for i, table in tables:
      for leaf in table:
        path = leaf.path if i is None else layer_path(model, i, leaf.path)
        if path in shapes and path not in seen:
          seen.add(path)
          start = '' if i is None else self.layer_name.format(i)
          names = tuple(_prefixed(start + name, prefix) for name in leaf.names)
          yield Place(path, shapes[path], i, leaf, names)
    if missing := sorted(set(shapes) - seen):
      raise UserError(
        f'{type(model).__name__} with {missing[0]}: expected leaves that a {self.name} has'
      )

  def matches(self, name: str, patterns: Sequence[str]) -> bool:
    """Returns whether the name of a tensor is one of some patterns."""
    return any(re.fullmatch(f'(.*\\.)?{pattern}', name) for pattern in patterns)


class Place(NamedTuple):
  """A leaf of a pool and its tensors.

  Attributes:
    path, shape: in the pool.
    layer: its number, or None.
    leaf: how it is made.
    names: of its tensors, whole.
  """

  path: str
  shape: tuple[int, ...]
  layer: int | None
  leaf: Leaf
  names: tuple[str, ...]


def _prefixed(name: str, prefix: str) -> str:
  """Returns the name of a tensor: `~` stands for the prefix."""
  return name.replace('~', prefix)


def pool_shapes(model: Additive, example: PyTree) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each leaf of a pool by its path."""
  flat = flatten_dict(initial_shapes(model, example)['params'], sep='/')
  return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def layer_path(model: Any, layer: int, path: str) -> str:
  """Returns where a leaf of a layer lies in the pool.

  >>> layer_path(aj.models.Decoder(1, 8, 2, 8, 50), 0, 'attention/q/kernel')
  'layer_00__attention/q/kernel'
  """
  digits = max(2, len(str(model.num_layers - 1)))
  return f'layer_{layer:0{digits}}{"/" if model.sites_by == LAYER else "__"}{path}'


def tokens_example(model: Any) -> jax.ShapeDtypeStruct:
  """Returns the shape of a small batch of tokens."""
  del model
  return jax.ShapeDtypeStruct((1, 2), jnp.int32)


def needed(config: Config, *names: str) -> list[Any]:
  """Returns values of a config; raises `UserError` for those that are missing."""
  if missing := [name for name in names if config.get(name) is None]:
    raise UserError(
      f'{config.get("model_type")} config without {", ".join(missing)}: expected {", ".join(names)}'
    )
  return [config[name] for name in names]


def expect(config: Config, name: str, *values: Any) -> None:
  """Raises `UserError` for a value of a config, where it has one, that the family does not have."""
  if name in config and config[name] not in values:
    raise UserError(
      f'{name} {config[name]!r} of a {config.get("model_type")} config: expected '
      f'{" or ".join(map(repr, values))}'
    )
