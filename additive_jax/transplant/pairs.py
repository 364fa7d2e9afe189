"""The parts of one model paired with those of another, larger or smaller one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from additive_jax.errors import UserError
from additive_jax.gates.structure import Structure, parse
from additive_jax.models.additive import Site, gate_names, sites_of
from additive_jax.models.dense_stack import DenseStack
from additive_jax.models.kinds import LANE
from additive_jax.transplant.wiring import Wiring, module_names, wiring_of

PLACES = ('spread', 'end')

Shapes = Mapping[str, tuple[int, ...]]  # of leaves, by name
Place = str | Sequence[int]


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """How the parts of a new model pair with those of an old one.

  Attributes:
    old, new: the wiring of both.
    origin: for each leaf of the new pool the leaf of the old one, None in a new block.
    neighbours: for each leaf of a new block that leaf of the old block before it, or of the first.
    spaces: for each space of the new model, but those of new blocks, the old one's name.
    sizes: of each of these spaces, old and new.
    sites: for each site of the new model the old one, or None, and itself.
    depths: blocks of the old and the new model.
    gates: gates of the old and the new model.
    shapes: of the leaves of both pools.
  """

  old: Wiring
  new: Wiring
  origin: Mapping[str, str | None]
  neighbours: Mapping[str, str]
  spaces: Mapping[str, str]
  sizes: Mapping[str, tuple[int, int]]
  sites: tuple[tuple[Site | None, Site], ...]
  depths: tuple[int, int]
  gates: tuple[int, int]
  shapes: tuple[Shapes, Shapes]

  def back(self) -> Pairs:
    """Returns the pairs of the way back, without blocks that are new."""
    sites = [(new, old) for old, new in self.sites if old is not None]
    return Pairs(
      self.new,
      self.old,
      origin={name: path for path, name in self.origin.items() if name is not None},
      neighbours={},
      spaces={old: new for new, old in self.spaces.items()},
      sizes={self.spaces[name]: sizes[::-1] for name, sizes in self.sizes.items()},
      sites=tuple(sorted(sites, key=lambda pair: pair[1].start)),
      depths=self.depths[::-1],
      gates=self.gates[::-1],
      shapes=self.shapes[::-1],
    )

  def structure(self, structure: Any = None, depth: str = 'zero') -> Structure:
    """Returns the structure of the new model that is the old one's `structure`, in any of its
    forms, None for all-on.

    Gates of new blocks are off for `depth` 'gated', else on; their lane gates are on only if all of
    the old model's are, since lanes that are apart would otherwise meet there.
    """
    count = self.gates[0]
    bits = (True,) * count if structure is None else parse(structure, count).bits
    old_sites = [old for old, _ in self.sites if old is not None]
    lanes = [old.start + old.names.index(LANE) for old in old_sites if LANE in old.names]
    together = all(bits[i] for i in lanes)
    new_bits: list[bool] = []
    for old, new in self.sites:
      if old is None:
        new_bits += [depth != 'gated' and (together or name != LANE) for name in new.names]
      else:
        new_bits += bits[old.gates]
    return Structure(tuple(new_bits))

  def __str__(self) -> str:
    """Returns what changes, such as `stream 8→20, hidden 9→24, depth 2→3`."""
    changes: dict[str, dict[str, None]] = {}
    streams_first = sorted(self.sizes, key=lambda space: space not in self.new.streams)
    for space in streams_first:
      size, new_size = self.sizes[space]
      if size != new_size:
        changes.setdefault(space.split('/')[-1], {})[f'{size}→{new_size}'] = None
    parts = [f'{kind} {" and ".join(sizes)}' for kind, sizes in changes.items()]
    if self.depths[0] != self.depths[1]:
      parts.append('depth {}→{}'.format(*self.depths))
    return ', '.join(parts) or 'same sizes'


def pair(
  old_model: nn.Module,
  old: PyTree,
  new_model: nn.Module,
  new: PyTree,
  *,
  place: Place,
  grows: bool | None = True,
) -> Pairs:
  """Returns how two models of one kind pair.

  Args:
    old, new: `{'params': pool}` of each, of arrays or shapes.
    place: of the deeper model's further blocks: 'spread' evenly between the others, or at the
      'end'; or the numbers of the deeper model's blocks that the others pair with.
    grows: whether the new model is at least as large as the old in all its sizes; False: at most;
      None: either.

  Raises:
    UserError: where the one does not fit into the other; it names the leaf and both shapes.
  """
  _check_kinds(old_model, new_model, place)
  old_wiring, new_wiring = wiring_of(old_model), wiring_of(new_model)
  pools = params_of(old), params_of(new)
  modules, module_neighbours, depths = _pair_blocks(old_wiring, new_wiring, place, grows)
  shapes = old_wiring.shapes(pools[0]), new_wiring.shapes(pools[1])
  origin: dict[str, str | None] = {}
  neighbours: dict[str, str] = {}
  for path in shapes[1]:
    module, slash, leaf = path.partition('/')
    before = modules.get(module, module)
    origin[path] = None if before is None else before + slash + leaf
    if before is None:
      neighbours[path] = module_neighbours[module] + slash + leaf
  shared = {path: name for path, name in origin.items() if name in shapes[0]}
  spaces, sizes = _pair_spaces(pools, (old_wiring, new_wiring), shared, shapes, grows)
  kind = type(old_model).__name__
  for name, value in old_wiring.fixed.items():
    if value != new_wiring.fixed.get(name):
      raise UserError(
        f'{kind} with {name} {value!r} into one with {new_wiring.fixed.get(name)!r}: expected the '
        'same'
      )
  _check_all_paired(kind, old_wiring, origin, shared, shapes[0], modules)
  old_sites = dict(zip(module_names(old_model), sites_of(old_model)))
  sites = tuple(
    (old_sites.get(modules.get(module, module)), site)
    for module, site in zip(module_names(new_model), sites_of(new_model))
  )
  gates = len(gate_names(old_model)), len(gate_names(new_model))
  return Pairs(
    old_wiring, new_wiring, origin, neighbours, spaces, sizes, sites, depths, gates, shapes
  )


def params_of(variables: PyTree) -> PyTree:
  """Returns the pool of `{'params': pool}`.

  Raises:
    UserError: for anything else.
  """
  if not isinstance(variables, Mapping) or 'params' not in variables:
    given = list(variables) if isinstance(variables, Mapping) else type(variables).__name__
    raise UserError(f"variables {given}: expected {{'params': pool}}, which model.init gives")
  return variables['params']


def _check_kinds(old_model, new_model, place: Place) -> None:
  if isinstance(place, str) and place not in PLACES:
    raise UserError(f'place {place!r}: expected one of {", ".join(PLACES)}, or numbers of blocks')
  if type(old_model) is not type(new_model):
    names = [type(model).__name__ for model in (old_model, new_model)]
    raise UserError('transplant of {} into {}: expected the same kind of model'.format(*names))
  if isinstance(old_model, DenseStack) and np.size(old_model.hidden) != np.size(new_model.hidden):
    raise UserError(
      f'transplant of a DenseStack with hidden layers {old_model.hidden} into one with '
      f'{new_model.hidden}: expected as many layers'
    )


def _pair_blocks(old: Wiring, new: Wiring, place: Place, grows: bool | None):
  """Pairs the blocks of each group.

    old blocks   a   b        spread: A is a, C is b; B is new, like a; D is new, like b
    new blocks   A B C D      end:    A is a, B is b; C and D are new, like b

  Returns:
    The old module of each module of the new model's blocks, or None in a new block; the neighbour
    that a new one is like; and the numbers of blocks.
  """
  if len(old.blocks) != len(new.blocks):
    raise UserError(
      f'{len(old.blocks)} stages into {len(new.blocks)}: expected as many, of at least as many '
      'blocks and channels'
    )
  modules: dict[str, str | None] = {}
  neighbours: dict[str, str] = {}
  start = 0
  for before, after in zip(old.blocks, new.blocks):
    few, many = sorted((len(before), len(after)))
    if grows is not None and few < many and grows != (few == len(before)):
      raise UserError(
        f'{len(before)} blocks ({before[0][0]} to {before[-1][-1]}) into {len(after)}: expected at '
        f'{"least" if grows else "most"} as many'
      )
    places = _places(place, few, many, start)
    start += many
    if len(before) > len(after):
      before, places = tuple(before[i] for i in places), list(range(few))
    for i, block in enumerate(after):
      last = max((k for k, first in enumerate(places) if first <= i), default=0)
      modules |= zip(block, before[last] if i in places else (None,) * len(block))
      neighbours |= zip(block, before[last])
  depths = sum(map(len, old.blocks)), sum(map(len, new.blocks))
  if not isinstance(place, str) and len(place) != min(depths):
    raise _wrong_place(place, min(depths), 0, max(depths))
  return modules, neighbours, depths


def _places(place: Place, few: int, many: int, start: int) -> list[int]:
  """Returns which of `many` blocks, the first of which has the number `start`, the `few` are."""
  if isinstance(place, str):
    return [i * many // few if place == 'spread' else i for i in range(few)]
  places = [i - start for i in place if start <= i < start + many]
  if len(places) != few or list(place) != sorted(set(place)):
    raise _wrong_place(place, few, start, many)
  return places


def _wrong_place(place: Sequence[int], few: int, start: int, many: int) -> UserError:
  return UserError(
    f'place {tuple(place)} of {few} blocks among blocks {start} to {start + many - 1}: expected as '
    'many different numbers of these, in order'
  )


def _pair_spaces(pools, wirings, shared: Mapping[str, str], shapes, grows: bool | None):
  """Returns the spaces of the leaves that are in both pools, and their sizes."""
  spaces: dict[str, str] = {}
  sizes: dict[str, tuple[int, int]] = {}

  def refuse(path: str, expected: str) -> NoReturn:
    names = shared[path].split('[')[0], path.split('[')[0]
    before, after = (
      tuple(flatten_dict(pool, sep='/')[name].shape) for pool, name in zip(pools, names)
    )
    raise UserError(f'leaf {names[0]} of shape {before} into shape {after}: expected {expected}')

  for path, name in shared.items():
    before, after = shapes[0][name], shapes[1][path]
    old_axes, axes = wirings[0].axes.get(name), wirings[1].axes.get(path)
    if old_axes is None or axes is None:
      raise UserError(f'leaf {path}: expected one that the wiring of the model names')
    if not len(old_axes) == len(axes) == len(before) == len(after):
      refuse(path, f'{len(old_axes)} axes')
    for old_axis, axis, size, new_size in zip(old_axes, axes, before, after):
      if old_axis is None or axis is None:
        if size != new_size:
          refuse(path, f'{new_size} to be {size}, on an axis that cannot change')
        continue
      if grows is not None and size != new_size and grows != (size < new_size):
        refuse(path, f'at {"least" if grows else "most"} {size} in place of {new_size}')
      if sizes.setdefault(axis.space, (size, new_size)) != (size, new_size):
        refuse(path, '{} and {} units of {}'.format(*sizes[axis.space], axis.space))
      spaces[axis.space] = old_axis.space
  return spaces, sizes


def _check_all_paired(kind: str, old: Wiring, origin, shared, old_shapes: Shapes, modules) -> None:
  for path, name in origin.items():
    if name is not None and path not in shared:
      raise UserError(f'leaf {path} of the new {kind}: expected {name} in the old pool')
  repeated = {name for blocks in old.blocks for block in blocks for name in block}
  dropped = repeated - set(modules.values())
  for name in old_shapes:
    if name not in shared.values() and name.split('/')[0] not in dropped:
      raise UserError(f'leaf {name} of the old {kind}: expected a place in the new pool')
