"""Which part of one model becomes which part of another, larger or smaller one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from flax.traverse_util import flatten_dict

from additive_jax.errors import UserError
from additive_jax.gates.structure import Structure, parse
from additive_jax.models.additive import Site, gate_names, sites_of
from additive_jax.models.dense_stack import DenseStack
from additive_jax.models.kinds import LANE
from additive_jax.transplant.wiring import Wiring, flat_shapes, wiring_of

PLACES = ('spread', 'end')


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """How the parts of a new model pair with those of an old one.

  Attributes:
    old, new: the wiring of both.
    origin: for each leaf of the new pool the leaf of the old one, None in a new block.
    like: for each leaf of a new block that leaf of the old block before it, or of the first.
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
  like: Mapping[str, str]
  spaces: Mapping[str, str]
  sizes: Mapping[str, tuple[int, int]]
  sites: tuple[tuple[Site | None, Site], ...]
  depths: tuple[int, int]
  gates: tuple[int, int]
  shapes: tuple[Mapping[str, tuple[int, ...]], Mapping[str, tuple[int, ...]]]

  def back(self) -> Pairs:
    """The pairs of the way back, without blocks that are new."""
    found = {name: path for path, name in self.origin.items() if name is not None}
    sites = sorted(
      ((new, old) for old, new in self.sites if old is not None), key=lambda pair: pair[1].start
    )
    return Pairs(
      self.new,
      self.old,
      found,
      {},
      {old: new for new, old in self.spaces.items()},
      {self.spaces[name]: sizes[::-1] for name, sizes in self.sizes.items()},
      tuple(sites),
      self.depths[::-1],
      self.gates[::-1],
      self.shapes[::-1],
    )

  def structure(self, structure, depth: str = 'zero') -> Structure:
    """The structure of the new model that is the old one's `structure`, in any of its forms, None
    for all-on.

    Gates of new blocks are off for `depth` 'gated', else on; their lane gates are on only if all of
    the old model's are, since lanes that are apart would otherwise meet there.
    """
    count = self.gates[0]
    bits = (True,) * count if structure is None else parse(structure, count).bits
    old_sites = [old for old, _ in self.sites if old is not None]
    lanes = [old.start + old.names.index(LANE) for old in old_sites if LANE in old.names]
    together = all(bits[i] for i in lanes)
    new_bits = []
    for old, new in self.sites:
      if old is None:
        new_bits += [depth != 'gated' and (together or name != LANE) for name in new.names]
      else:
        new_bits += bits[old.gates]
    return Structure(tuple(new_bits))

  def __str__(self) -> str:
    """What changes, such as `stream 8→20, hidden 9→24, depth 2→3`."""
    changes = {}
    streams_first = sorted(self.sizes, key=lambda space: space not in self.new.streams)
    for space in streams_first:
      size, new_size = self.sizes[space]
      if size != new_size:
        kind = space.split('/')[-1]
        changes.setdefault(kind, {})[f'{size}→{new_size}'] = None
    parts = [f'{kind} {" and ".join(each)}' for kind, each in changes.items()]
    if self.depths[0] != self.depths[1]:
      parts.append('depth {}→{}'.format(*self.depths))
    return ', '.join(parts) or 'same sizes'


def pair(
  old_model, old, new_model, new, *, place: str | Sequence[int], grows: bool | None = True
) -> Pairs:
  """Pairs two models of one kind.

  Args:
    old, new: `{'params': pool}` of each, of arrays or shapes.
    place: of the deeper model's further blocks: 'spread' evenly between the others, or at the
      'end'; or the numbers of the deeper model's blocks that the others pair with.
    grows: whether the new model is at least as large as the old in all its sizes; False: at most;
      None: either.

  Raises:
    UserError: where the one does not fit into the other; it names the leaf and both shapes.
  """
  if isinstance(place, str) and place not in PLACES:
    raise UserError(f'place {place!r}: expected one of {", ".join(PLACES)}, or numbers of blocks')
  if type(old_model) is not type(new_model):
    names = [type(model).__name__ for model in (old_model, new_model)]
    raise UserError('transplant of {} into {}: expected the same kind of model'.format(*names))
  if isinstance(old_model, DenseStack) and len(old_model.hidden) != len(new_model.hidden):
    raise UserError(
      f'transplant of a DenseStack with hidden layers {old_model.hidden} into one with '
      f'{new_model.hidden}: expected as many layers'
    )
  wirings = old_wiring, new_wiring = wiring_of(old_model), wiring_of(new_model)
  pools = params_of(old), params_of(new)
  modules, likes, depths = _pair_blocks(*wirings, place, grows)
  origin, like = {}, {}
  old_shapes, new_shapes = (flat_shapes(*each) for each in zip(pools, wirings))
  for path in new_shapes:
    module, _, rest = path.partition('/')
    before = modules.get(module, module)
    named = lambda module, rest=rest: f'{module}/{rest}' if rest else module
    origin[path] = None if before is None else named(before)
    if before is None:
      like[path] = named(likes[module])
  found = {path: name for path, name in origin.items() if name in old_shapes}
  spaces, sizes = _pair_spaces(pools, wirings, found, old_shapes, new_shapes, grows)
  for name, value in old_wiring.fixed.items():
    if value != new_wiring.fixed.get(name):
      raise UserError(
        f'{type(old_model).__name__} with {name} {value!r} into one with '
        f'{new_wiring.fixed.get(name)!r}: expected the same'
      )
  _check_all_found(type(old_model).__name__, old_wiring, origin, found, old_shapes, modules)
  by_module = {_module(site): site for site in sites_of(old_model)}
  old_site = lambda module: by_module.get(modules.get(module, module))
  sites = tuple((old_site(_module(site)), site) for site in sites_of(new_model))
  gates = len(gate_names(old_model)), len(gate_names(new_model))
  shapes = old_shapes, new_shapes
  return Pairs(*wirings, origin, like, spaces, sizes, sites, depths, gates, shapes)


def _module(site: Site) -> str:
  return site.label.replace('/', '__')


def params_of(variables):
  """The pool of `{'params': pool}`.

  Raises:
    UserError: for anything else.
  """
  if not isinstance(variables, Mapping) or 'params' not in variables:
    given = list(variables) if isinstance(variables, Mapping) else type(variables).__name__
    raise UserError(f"variables {given}: expected {{'params': pool}}, which model.init gives")
  return variables['params']


def _pair_blocks(old: Wiring, new: Wiring, place, grows):
  """For each module of the new model's blocks the old one, or None; the old one that a new module
  is like; and the numbers of blocks."""
  if len(old.blocks) != len(new.blocks):
    raise UserError(
      f'{len(old.blocks)} stages into {len(new.blocks)}: expected as many, of at least as many '
      'blocks and channels'
    )
  modules, likes, start = {}, {}, 0
  for before, after in zip(old.blocks, new.blocks):
    few, many = sorted((len(before), len(after)))
    if grows is not None and few < many and grows != (few == len(before)):
      raise UserError(
        f'{len(before)} blocks ({before[0][0]} to {before[-1][-1]}) into {len(after)}: expected at '
        f'{"least" if grows else "most"} as many'
      )
    if isinstance(place, str):
      kept = [i * many // few if place == 'spread' else i for i in range(few)]
    else:
      kept = [i - start for i in place if start <= i < start + many]
      if len(kept) != few or list(place) != sorted(set(place)):
        raise UserError(
          f'place {tuple(place)} of {few} blocks among blocks {start} to {start + many - 1}: '
          'expected as many different numbers of these, in order'
        )
    start += many
    if len(before) > len(after):
      places, before = range(few), [before[i] for i in kept]
    else:
      places = kept
    for i, block in enumerate(after):
      last = max((k for k, start in enumerate(places) if start <= i), default=0)
      modules |= zip(block, before[last] if i in places else (None,) * len(block))
      likes |= zip(block, before[last])
  depths = tuple(sum(map(len, wiring.blocks)) for wiring in (old, new))
  if not isinstance(place, str) and len(place) != min(depths):
    raise UserError(
      f'place {tuple(place)} of {min(depths)} blocks among blocks 0 to {max(depths) - 1}: expected '
      'as many different numbers of these, in order'
    )
  return modules, likes, depths


def _pair_spaces(pools, wirings, found, old_shapes, new_shapes, grows):
  """The spaces of the leaves found in both pools, and their sizes."""
  whole = [flatten_dict(pool, sep='/') for pool in pools]
  spaces, sizes = {}, {}

  def refuse(path, what):
    names = found[path].split('[')[0], path.split('[')[0]
    before, after = (tuple(leaves[name].shape) for leaves, name in zip(whole, names))
    raise UserError(f'leaf {names[0]} of shape {before} into shape {after}: expected {what}')

  for path, name in found.items():
    before, after = old_shapes[name], new_shapes[path]
    axes = [wiring.axes.get(leaf) for wiring, leaf in zip(wirings, (name, path))]
    if any(axes_ is None for axes_ in axes):
      raise UserError(f'leaf {path}: expected one that the wiring of the model names')
    if not len(axes[0]) == len(axes[1]) == len(before) == len(after):
      refuse(path, f'{len(axes[0])} axes')
    for old_axis, axis, size, new_size in zip(*axes, before, after):
      if None in (old_axis, axis):
        if size != new_size:
          refuse(path, f'{new_size} to be {size}, on an axis that cannot change')
        continue
      if grows is not None and size != new_size and grows != (size < new_size):
        refuse(path, f'at {"least" if grows else "most"} {size} in place of {new_size}')
      if sizes.setdefault(axis.space, (size, new_size)) != (size, new_size):
        refuse(path, '{} and {} units of {}'.format(*sizes[axis.space], axis.space))
      spaces[axis.space] = old_axis.space
  return spaces, sizes


def _check_all_found(model, old_wiring, origin, found, old_shapes, modules):
  for path, name in origin.items():
    if name is not None and path not in found:
      raise UserError(f'leaf {path} of the new {model}: expected {name} in the old pool')
  repeated = {name for blocks in old_wiring.blocks for block in blocks for name in block}
  dropped = repeated - set(modules.values())
  for name in old_shapes:
    if name not in found.values() and name.split('/')[0] not in dropped:
      raise UserError(f'leaf {name} of the old {model}: expected a place in the new pool')
