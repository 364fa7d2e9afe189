"""The plain network that a network with gates becomes: in one structure, with some of its units.

A planner walks the sites that are on, and lists the steps that compute the same. Of an MLP in the
structure `101`, of which block 2 keeps no unit:

  embed ─ block_00 ─ block_01 ─ block_02 ─ readout
  dense   feed_forward   (off)    shift      head     (shift: only the output bias is left)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import Bool

from additive_jax.compress.steps import Step, step
from additive_jax.gates.layers import chunks
from additive_jax.gates.structure import Structure
from additive_jax.models import DNA, MLP, ConvNet, Transformer
from additive_jax.models.additive import sites_of
from additive_jax.models.dense_stack import DenseStack
from additive_jax.models.kinds import LANE, RESIDUAL
from additive_jax.transplant.wiring import (
  READS,
  Axis,
  Wiring,
  dense_layers,
  module_names,
  wiring_of,
)

INPUTS = 'inputs'  # the space of the numbers of an input that is flattened


@dataclasses.dataclass(frozen=True)
class Selection:
  """The gates and units of a network that stay.

  Attributes:
    structure: the gates that are on.
    units: by space, which of its units stay.
  """

  structure: Structure
  units: Mapping[str, Bool[np.ndarray, 'size']]

  def sites(self, model: nn.Module) -> Iterator[tuple[str, dict[str, bool]]]:
    """Yields each site that is on: its module's name, and its other gates by name."""
    for module, site in zip(module_names(model), sites_of(model)):
      gates = dict(zip(site.names, self.structure.bits[site.gates]))
      if gates.pop(RESIDUAL, True):
        yield module, gates

  def counts(self, space: str, parts: int = 1) -> tuple[int, ...]:
    """Returns how many units stay in each of the parts of a space, such as chunks or lanes."""
    units = self.units[space]
    return tuple(int(units[part].sum()) for part in chunks(len(units), parts))

  def num_lanes(self, model: MLP | Transformer) -> int:
    """Returns how many lanes differ from each other: all, or one where they meet at every site."""
    lanes_differ = any(not gates.get(LANE, True) for _, gates in self.sites(model))
    return model.num_lanes if lanes_differ else 1

  @property
  def inputs(self) -> tuple[int, ...] | None:
    """The numbers of a flattened input that stay; None is all."""
    units = self.units[INPUTS]
    return None if units.all() else tuple(np.flatnonzero(units).tolist())


@dataclasses.dataclass
class Plan:
  """The plain network, as it is put together.

  Attributes:
    steps: of the plain network.
    sources: for each of its modules, or leaves, the one of the network with gates that it is taken
      from, by path with / between modules.
  """

  steps: list[Step] = dataclasses.field(default_factory=list)
  sources: dict[str, str] = dataclasses.field(default_factory=dict)

  def add(
    self,
    kind: str,
    name: str | None = None,
    sources: Mapping[str, str] | None = None,
    **fields: Any,
  ) -> None:
    """Adds a step. `sources` are those of its parameters; None is the module of its own name."""
    self.steps.append(step(kind, name, **{k: v for k, v in fields.items() if v is not None}))
    if name is not None:
      self.sources |= {name: name} if sources is None else sources

  def shift(self, name: str, lanes: int, meet: bool, biased: bool = True) -> None:
    """Adds what is left of a branch without units: its output bias, and lanes that meet."""
    if biased:
      source = {f'{name}/bias': f'{name}/out/bias'}
      self.add('shift', name, source, lanes=lanes, meet=meet, biased=True)
    elif lanes > 1 and meet:
      self.add('shift', lanes=lanes, meet=meet, biased=False)

  def branch(self, selection: Selection, name: str, gates: dict[str, bool], **fields: Any) -> None:
    """Adds a feed-forward or attention branch; `fields` are those of the step, `lanes` their number
    and `units` the kind of units of which each lane has its own."""
    lanes, units = fields.pop('lanes'), fields.pop('units')
    counts, meet = selection.counts(f'{name}/{units}', lanes), gates.get(LANE, True)
    if not any(counts):
      self.shift(name, lanes, meet, biased=fields.get('unit') != 'swiglu')
    elif units == 'heads':
      self.add('attention', name, heads=counts, meet=meet, **fields)
    else:
      self.add('feed_forward', name, hidden=counts, meet=meet, joins=_joins(gates), **fields)


def has_routers(model: nn.Module) -> bool:
  """Returns whether a model chooses by token what it runs: a DNA, or a Transformer with
  `routing`."""
  return isinstance(model, DNA) or getattr(model, 'routing', None) is not None


def cut_wiring(model: nn.Module) -> Wiring:
  """Returns the wiring of transplants, with a space of inputs for networks that flatten them."""
  wiring = wiring_of(model)
  if not isinstance(model, MLP | DenseStack):
    return wiring
  first = next(iter(dense_layers(model).values())) if isinstance(model, DenseStack) else 'embed'
  path = f'{first}/kernel'
  axes = {**wiring.axes, path: (Axis(READS, INPUTS), *wiring.axes[path][1:])}
  return dataclasses.replace(wiring, axes=axes)


def _joins(gates: dict[str, bool]) -> tuple[bool, ...]:
  """Returns the gates of a site's chunks; () where they are all on, as the layer is dense then."""
  joins = tuple(on for name, on in gates.items() if name != LANE)
  return () if all(joins) else joins


def _mlp(model: MLP, selection: Selection) -> Plan:
  plan, lanes = Plan(), selection.num_lanes(model)
  plan.add('flat', inputs=selection.inputs)
  plan.add('dense', 'embed', features=model.width)
  if lanes > 1:
    plan.add('split', lanes=lanes)
  for name, gates in selection.sites(model):
    plan.branch(selection, name, gates, lanes=lanes, units='hidden', unit='gelu')
  if lanes > 1:
    plan.add('mean')
  plan.add('head', 'readout', num_classes=model.num_classes)
  return plan


def _dense_stack(model: DenseStack, selection: Selection) -> Plan:
  plan, modules = Plan(), dense_layers(model)
  plan.add('flat', inputs=selection.inputs)
  activation = lambda name: 'none' if name == 'out' else 'relu'

  def sizes(name: str, parts: int = 1) -> tuple[int, ...]:
    if name != 'out':
      return selection.counts(name, parts)
    return tuple(part.stop - part.start for part in chunks(model.num_classes, parts))

  # Pairs of layers with chunks that are apart, by their first layer: 'fc1' of 'fc1_fc2'.
  split_pairs = {
    pair.split('_')[0]: (pair, joins)
    for pair, gates in selection.sites(model)
    if (joins := _joins(gates))
  }
  names = list(modules)
  for before, name, after in zip([INPUTS, *names], names, [*names[1:], '']):
    if before in split_pairs:
      continue  # the second of a pair
    if name not in split_pairs:
      source, features = {name: modules[name]}, sizes(name)[0]
      plan.add('dense', name, source, features=features, activation=activation(name))
      continue
    pair, joins = split_pairs[name]
    plan.add(
      'chunked_pair',
      pair,
      layers=(name, after),
      hidden=sizes(name)[0],
      joins=joins,
      inputs=sizes(before, model.num_chunks),
      outputs=sizes(after, model.num_chunks),
      activation=activation(after),
    )
  return plan


def _transformer(model: Transformer, selection: Selection) -> Plan:
  plan, lanes = Plan(), selection.num_lanes(model)
  if model.num_tokens:
    plan.add('embed', 'embed', num_tokens=model.num_tokens, features=model.width)
  else:
    plan.add('patches', size=model.patch_size)
    plan.add('dense', 'embed', features=model.width)
  rope = model.positions == 'rope'
  if not rope:
    source = {'position/embedding': 'position'}
    plan.add('positions', 'position', source, max_tokens=model.max_tokens)
  if lanes > 1:
    plan.add('split', lanes=lanes)
  attention = {'size': model.width // model.num_heads, 'causal': model.causal, 'rope': rope}
  for name, gates in selection.sites(model):
    if name.endswith('__mlp'):
      plan.branch(selection, name, gates, lanes=lanes, units='hidden', unit=model.unit)
    else:
      plan.branch(selection, name, gates, lanes=lanes, units='heads', **attention)
  if lanes > 1:
    plan.add('mean')
  if not model.num_tokens:
    plan.add('mean')
  plan.add('head', 'readout', num_classes=model.num_classes)
  return plan


def _convnet(model: ConvNet, selection: Selection) -> Plan:
  plan = Plan()
  plan.add('images', least=2 ** (len(model.channels) - 1))
  plan.add('conv', 'embed', features=model.channels[0], side=3)
  channels = iter(model.channels[1:])
  for name, gates in selection.sites(model):
    if name.endswith('__down'):
      plan.add('down', name, channels=next(channels))
    elif hidden := selection.counts(f'{name}/hidden')[0]:
      plan.add('conv_block', name, hidden=hidden, joins=_joins(gates))
    else:
      plan.shift(name, lanes=1, meet=True)
  plan.add('pooled_head', 'readout', num_classes=model.num_classes)
  return plan


# The networks that become steps.
PLANNERS: Mapping[type[nn.Module], Callable[[Any, Selection], Plan]] = {
  MLP: _mlp,
  DenseStack: _dense_stack,
  Transformer: _transformer,
  ConvNet: _convnet,
}
