"""The units that each axis of each leaf of a pool belongs to.

A *space* is a set of like units that may grow together: the stream, the hidden units of a branch,
its heads, the units of a head. An axis of a leaf writes a space (the columns of a kernel, a bias),
reads it (the rows of a kernel), is the scale or the bias of a norm of it, or belongs to none:
classes, pixels of a patch, tokens. Such an axis never changes its size.

  block_00__mlp/norm/scale  [D]      scale of stream
  block_00__mlp/in/kernel   [D, H]   reads stream, writes block_00__mlp/hidden
  block_00__mlp/in/bias     [H]      writes block_00__mlp/hidden
  block_00__mlp/out/kernel  [H, D]   reads block_00__mlp/hidden, writes stream
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree, Shaped

from additive_jax.errors import UserError
from additive_jax.models.additive import sites_of
from additive_jax.models.convnet import ConvNet
from additive_jax.models.dense_stack import DenseStack
from additive_jax.models.kinds import LANE, SUB_ACTIVATION
from additive_jax.models.mlp import MLP
from additive_jax.models.transformer import Transformer

READS, WRITES, SCALE, BIAS = 'reads', 'writes', 'scale', 'bias'
QUERY, KEY = 'query', 'key'  # what they write is multiplied with each other and by size^(−1/2)
LAYER, RMS = 'layer', 'rms'

Leaves = Mapping[str, Shaped[np.ndarray, '...']]  # of a pool, by name
Blocks = tuple[tuple[str, ...], ...]
Leaf = TypeVar('Leaf')


class Axis(NamedTuple):
  """One axis of a leaf.

  >>> wiring_of(aj.models.MLP(1, width=4, hidden=8, num_classes=3)).axes['block_00/out/bias']
  (Axis(role='writes', space='stream'),)

  Attributes:
    role: 'reads', 'writes', 'scale', 'bias' (of a norm), 'query' or 'key'.
    space: the name of the units along it.
  """

  role: str
  space: str


Axes = tuple[Axis | None, ...]


@dataclasses.dataclass(frozen=True)
class Wiring:
  """The axes of all leaves of a model's pool. A network of your own gives it as a method
  `wiring()`; `wiring_of` gives that of the library's.

  Attributes:
    axes: for each leaf, named by its path with / between modules, an `Axis` or None for each of
      its axes. More leaves than the pool has do no harm.
    streams: the spaces that run through the network, and the norm before everything that reads
      one: 'layer' (LayerNorm), 'rms' (RMSNorm), or None where nothing normalises it.
    blocks: groups of blocks that can be repeated in depth; a group is a tuple of blocks in order,
      and a block the names of its modules.
    stacked: leaves of several kernels side by side, and the axis that they are stacked along. The
      axes of slice i, without that axis, are given for the leaf named `path[i]`.
    nested: spaces that each unit of another space has for itself, such as the units of a head.
    fixed: what two models must have in common beside the shapes, by name.

  >>> wiring = wiring_of(aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3))
  >>> wiring.axes['block_00/in/kernel']
  (Axis(role='reads', space='stream'), Axis(role='writes', space='block_00/hidden'))
  """

  axes: Mapping[str, Axes]
  streams: Mapping[str, str | None]
  blocks: tuple[Blocks, ...] = ()
  stacked: Mapping[str, int] = dataclasses.field(default_factory=dict)
  nested: frozenset[str] = frozenset()
  fixed: Mapping[str, object] = dataclasses.field(default_factory=dict)

  def flat(self, params: PyTree) -> dict[str, Shaped[np.ndarray, '...']]:
    """Returns the leaves of a pool on the host by name, the slices of stacked ones apart."""
    leaves: dict[str, np.ndarray] = {}
    for path, leaf in flatten_dict(params, sep='/').items():
      leaf, axis = np.asarray(leaf), self.stacked.get(path)
      leaves |= zip(_names(path, axis), [leaf] if axis is None else np.moveaxis(leaf, axis, 0))
    return leaves

  def shapes(self, params: PyTree) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of `flat`, for a pool of anything that has shapes.

    Raises:
      UserError: for a pool without some of the modules.
    """
    modules = {path.partition('/')[0]: None for path in self.axes if '/' in path}
    if missing := [module for module in modules if module not in params]:
      more = f' and {len(missing) - 1} more' if len(missing) > 1 else ''
      raise UserError(f'a pool without {missing[0]}{more}: expected the pool of the model')
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in flatten_dict(params, sep='/').items():
      axis = self.stacked.get(path)
      if axis is None:
        shapes[path] = tuple(leaf.shape)
      else:
        shape = (*leaf.shape[:axis], *leaf.shape[axis + 1 :])
        shapes |= zip(_names(path, axis), (shape,) * leaf.shape[axis])
    return shapes

  def pool(self, leaves: Leaves) -> dict[str, Any]:
    """Returns the pool whose `flat` these leaves are."""
    joined = dict(leaves)
    for path, axis in self.stacked.items():
      names = itertools.takewhile(joined.__contains__, _names(path, axis))
      if slices := [joined.pop(name) for name in list(names)]:
        joined[path] = np.stack(slices, axis)
    return unflatten_dict(joined, sep='/')

  def unit_axes(self, leaves: Mapping[str, Leaf]) -> Iterator[tuple[str, Leaf, int, Axis]]:
    """Yields each axis that belongs to a space: its leaf's name, the leaf, its number, the axis."""
    for name, leaf in leaves.items():
      for number, axis in enumerate(self.axes.get(name, ())):
        if axis is not None:
          yield name, leaf, number, axis

  def sides(
    self, leaves: Leaves, space: str, reduce: Callable[[np.ndarray, tuple[int, ...]], Any]
  ) -> tuple[list[Any], list[Any]]:
    """Returns `reduce(leaf, all axes but that of the space)` of each leaf that writes the space,
    and of each that reads it. A query writes, and a key reads, the units that they meet in; a
    norm's scale and bias do neither."""
    written: list[Any] = []
    read: list[Any] = []
    for _, leaf, number, axis in self.unit_axes(leaves):
      if axis.space == space and axis.role not in (SCALE, BIAS):
        side = read if axis.role in (READS, KEY) else written
        side.append(reduce(leaf, other_axes(leaf.ndim, number)))
    return written, read


def other_axes(ndim: int, axis: int) -> tuple[int, ...]:
  """Returns all axes but one, to sum over.

  >>> other_axes(3, 1)
  (0, 2)
  """
  return tuple(i for i in range(ndim) if i != axis)


def wiring_of(model: nn.Module) -> Wiring:
  """Returns the wiring of an MLP, a DenseStack, a Transformer without routers, a ConvNet, or a
  model that has a method `wiring`.

  >>> wiring = wiring_of(aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3))
  >>> wiring.streams, wiring.blocks
  ({'stream': 'layer'}, ((('block_00',), ('block_01',)),))

  Raises:
    UserError: for any other model.
  """
  if hasattr(model, 'wiring'):
    return model.wiring()
  if isinstance(model, MLP):
    return _mlp(model)
  if isinstance(model, DenseStack):
    return _dense_stack(model)
  if isinstance(model, Transformer) and model.routing is None:
    return _transformer(model)
  if isinstance(model, ConvNet):
    return _convnet(model)
  routed = ' with routers' if isinstance(model, Transformer) else ''
  raise UserError(
    f'transplant of {type(model).__name__}{routed}: expected MLP, ConvNet, Transformer without '
    'routers, DenseStack, or a model with a method `wiring` that gives '
    'additive_jax.transplant.Wiring'
  )


def module_names(model: nn.Module) -> list[str]:
  """Returns the names of the sites' modules, in order."""
  return [site.label.replace('/', '__') for site in sites_of(model)]


def _names(path: str, axis: int | None) -> Iterable[str]:
  return (path,) if axis is None else (f'{path}[{i}]' for i in itertools.count())


def _norm(name: str, stream: str) -> dict[str, Axes]:
  return {f'{name}/scale': (Axis(SCALE, stream),), f'{name}/bias': (Axis(BIAS, stream),)}


def _linear(name: str, *axes: Axis | None) -> dict[str, Axes]:
  """Returns the axes of a kernel whose last one is written, and of its bias."""
  return {f'{name}/kernel': axes, f'{name}/bias': axes[-1:]}


def _feed_forward(name: str, stream: str) -> dict[str, Axes]:
  hidden = f'{name}/hidden'
  return {
    **_norm(f'{name}/norm', stream),
    **_linear(f'{name}/in', Axis(READS, stream), Axis(WRITES, hidden)),
    **_linear(f'{name}/gate', Axis(READS, stream), Axis(WRITES, hidden)),
    **_linear(f'{name}/out', Axis(READS, hidden), Axis(WRITES, stream)),
  }


def _attention(name: str, stream: str, rope: bool) -> dict[str, Axes]:
  # A rotation pairs a query's units by their number, so with it they stay as they are.
  unit = lambda role, space: None if rope else Axis(role, f'{name}/{space}')
  heads = lambda role: Axis(role, f'{name}/heads')
  axes = {
    **_norm(f'{name}/norm', stream),
    f'{name}/out/kernel': (heads(READS), unit(READS, 'values'), Axis(WRITES, stream)),
    f'{name}/out/bias': (Axis(WRITES, stream),),
  }
  written = (unit(QUERY, 'queries'), unit(KEY, 'queries'), unit(WRITES, 'values'))
  for i, units in enumerate(written):
    axes[f'{name}/qkv/kernel[{i}]'] = (Axis(READS, stream), heads(WRITES), units)
    axes[f'{name}/qkv/bias[{i}]'] = (heads(WRITES), units)
  return axes


def _head(stream: str) -> dict[str, Axes]:
  return _norm('readout/norm', stream) | _linear('readout/out', Axis(READS, stream), None)


def _gates(model) -> dict[str, Any]:
  """Returns what the gates of two models must have in common."""
  fixed = {'gates': model.gates}
  if SUB_ACTIVATION in model.gates:
    fixed['num_chunks'] = model.num_chunks
  if LANE in model.gates:
    fixed['num_lanes'] = model.num_lanes
  return fixed


def _mlp(model: MLP) -> Wiring:
  stream, modules = 'stream', module_names(model)
  axes = {**_linear('embed', None, Axis(WRITES, stream)), **_head(stream)}
  for name in modules:
    axes |= _feed_forward(name, stream)
  return Wiring(axes, {stream: LAYER}, (_single(modules),), fixed=_gates(model))


def dense_layers(model: DenseStack) -> dict[str, str]:
  """Returns the layers of a DenseStack in order, with the module of each."""
  names = [f'fc{i + 1}' for i in range(np.size(model.hidden))] + ['out']
  modules = {name: name for name in names}
  for site in sites_of(model):
    modules |= {name: f'{site.label}/{name}' for name in site.label.split('_')}
  return modules


def _dense_stack(model: DenseStack) -> Wiring:
  axes, before = {}, None
  for name, module in dense_layers(model).items():
    units = None if name == 'out' else Axis(WRITES, name)
    axes |= _linear(module, before, units)
    before = Axis(READS, name)
  return Wiring(axes, {}, fixed=_gates(model))


def _transformer(model: Transformer) -> Wiring:
  stream, modules = 'stream', module_names(model)
  rope = model.positions == 'rope'
  axes = {
    **_linear('embed', None, Axis(WRITES, stream)),
    'embed/embedding': (None, Axis(WRITES, stream)),
    'position': (None, Axis(WRITES, stream)),
    **_head(stream),
  }
  attention, mlp = modules[::2], modules[1::2]
  stacked, nested = {}, set()
  for name in attention:
    axes |= _attention(name, stream, rope)
    stacked |= {f'{name}/qkv/kernel': 1, f'{name}/qkv/bias': 0}
    nested |= {f'{name}/queries', f'{name}/values'}
  for name in mlp:
    axes |= _feed_forward(name, stream)
  fixed = _gates(model) | {
    name: getattr(model, name) for name in ('unit', 'positions', 'causal', 'patch_size')
  }
  fixed['inputs'] = 'tokens' if model.num_tokens else 'images'
  if model.num_tokens:
    del fixed['patch_size']
  blocks = (tuple(zip(attention, mlp)),)
  return Wiring(axes, {stream: LAYER}, blocks, stacked, frozenset(nested), fixed)


def _convnet(model: ConvNet) -> Wiring:
  stages = {}
  for name in module_names(model):
    stages.setdefault(name.split('__')[0], []).append(name)
  axes, before = _head([*stages][-1]), None
  pixels = (None, None)
  for stage, modules in stages.items():
    written = Axis(WRITES, stage)
    if before is None:
      axes |= _linear('embed', *pixels, None, written)
    else:
      down = modules.pop(0)
      axes |= _norm(f'{down}/norm', before)
      axes |= _linear(f'{down}/conv', *pixels, Axis(READS, before), written)
    for name in modules:
      for path, dense in _feed_forward(name, stage).items():
        axes[path] = (*pixels, *dense) if path.endswith('/kernel') else dense
    before = stage
  blocks = tuple(_single(modules) for modules in stages.values())
  return Wiring(axes, dict.fromkeys(stages, LAYER), blocks, fixed=_gates(model))


def _single(modules: Iterable[str]) -> Blocks:
  return tuple((name,) for name in modules)
