"""Which steps a network with gates becomes in one structure, with what is kept of its units."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from additive_jax.compress.steps import Step, step
from additive_jax.gates.layers import chunks
from additive_jax.gates.structure import Structure
from additive_jax.models import DNA, MLP, ConvNet, Transformer
from additive_jax.models.additive import sites_of
from additive_jax.models.dense_stack import DenseStack
from additive_jax.models.kinds import LANE, RESIDUAL
from additive_jax.transplant.wiring import dense_layers

INPUTS = 'inputs'  # the space of the numbers of an input that is flattened


@dataclasses.dataclass(frozen=True)
class Plan:
  """What becomes of a network.

  Attributes:
    steps: of the plain network.
    parameters: for each of its modules, or leaves, the one of the network with gates that it is
      taken from, by path with / between modules.
  """

  steps: tuple[Step, ...]
  parameters: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Kept:
  """What is kept: of gates, and of units.

  Attributes:
    structure: the gates that are on.
    units: by space, which of its units are kept, bool [n].
  """

  structure: Structure
  units: Mapping[str, np.ndarray]

  def sites(self, model):
    """Of each site that is on its module's name, and the values of its gates by name."""
    for site in sites_of(model):
      values = dict(zip(site.names, self.structure.bits[site.gates]))
      if values.pop(RESIDUAL, True):
        yield site.label.replace('/', '__'), values

  def counts(self, space: str, parts: int = 1) -> tuple[int, ...]:
    """Units kept in each of the parts that a space is divided into, as chunks or lanes are."""
    units = self.units[space]
    return tuple(int(units[part].sum()) for part in chunks(len(units), parts))


def has_routers(model) -> bool:
  """Whether a model chooses by token what it runs: a DNA, or a Transformer with `routing`."""
  return isinstance(model, DNA) or getattr(model, 'routing', None) is not None


class _Steps:
  """Collects steps and where their parameters come from."""

  def __init__(self):
    self.steps, self.parameters = [], {}

  def add(self, kind: str, name: str | None = None, source: str | None = None, **fields):
    """A step, whose parameters are those of the module `source`; None is one of its own name."""
    self.steps.append(step(kind, name, **fields))
    if name is not None:
      self.parameters[name] = source or name

  def shift(self, name: str, lanes: int, meet: bool, biased: bool) -> None:
    """What is left of a branch without units."""
    if biased:
      self.steps.append(step('shift', name, lanes=lanes, meet=meet, biased=True))
      self.parameters[f'{name}/bias'] = f'{name}/out/bias'
    elif lanes > 1 and meet:
      self.steps.append(step('shift', lanes=lanes, meet=meet, biased=False))

  def done(self) -> Plan:
    return Plan(tuple(self.steps), self.parameters)


def _flat(kept):
  units = kept.units[INPUTS]
  return {} if units.all() else {'inputs': tuple(np.flatnonzero(units).tolist())}


def _joins(values) -> tuple[bool, ...]:
  """The gates of a site's chunks; () where they are all on, as the layer is dense then."""
  joins = tuple(on for name, on in values.items() if name != LANE)
  return () if all(joins) else joins


def _lanes(model, kept) -> int:
  """How many lanes differ from each other: all, or one where they meet at every site."""
  apart = any(not values.get(LANE, True) for _, values in kept.sites(model))
  return model.num_lanes if apart else 1


def _feed_forward(steps, name, values, kept, lanes, unit):
  hidden, meet = kept.counts(f'{name}/hidden', lanes), values.get(LANE, True)
  if any(hidden):
    fields = {'hidden': hidden, 'unit': unit, 'joins': _joins(values), 'meet': meet}
    steps.add('feed_forward', name, **fields)
  else:
    steps.shift(name, lanes, meet, unit != 'swiglu')


def _mlp(model: MLP, kept: Kept) -> Plan:
  steps, lanes = _Steps(), _lanes(model, kept)
  steps.add('flat', **_flat(kept))
  steps.add('dense', 'embed', features=model.width)
  if lanes > 1:
    steps.add('split', lanes=lanes)
  for name, values in kept.sites(model):
    _feed_forward(steps, name, values, kept, lanes, 'gelu')
  if lanes > 1:
    steps.add('mean')
  steps.add('head', 'readout', num_classes=model.num_classes)
  return steps.done()


def _dense_stack(model: DenseStack, kept: Kept) -> Plan:
  steps, modules = _Steps(), dense_layers(model)
  activation = lambda name: 'none' if name == 'out' else 'relu'
  names, apart = list(modules), {}
  for pair, values in kept.sites(model):
    if _joins(values):
      apart[pair.split('_')[0]] = pair, _joins(values)
  steps.add('flat', **_flat(kept))
  for before, name, after in zip([INPUTS, *names], names, [*names[1:], None]):
    size = functools.partial(_size, model, kept)
    if before in apart:
      continue  # the second of a pair
    if name not in apart:
      steps.add('dense', name, modules[name], features=size(name)[0], activation=activation(name))
      continue
    pair, joins = apart[name]
    sizes = {'inputs': size(before, model.num_chunks), 'outputs': size(after, model.num_chunks)}
    steps.add(
      'chunked_pair',
      pair,
      layers=(name, after),
      hidden=size(name)[0],
      joins=joins,
      activation=activation(after),
      **sizes,
    )
  return steps.done()


def _size(model, kept, name, parts=1):
  """Units of a layer, in each of its parts."""
  if name != 'out':
    return kept.counts(name, parts)
  return tuple(part.stop - part.start for part in chunks(model.num_classes, parts))


def _transformer(model: Transformer, kept: Kept) -> Plan:
  steps, lanes = _Steps(), _lanes(model, kept)
  if model.num_tokens:
    steps.add('embed', 'embed', num_tokens=model.num_tokens, features=model.width)
  else:
    steps.add('patches', size=model.patch_size)
    steps.add('dense', 'embed', features=model.width)
  rope = model.positions == 'rope'
  if not rope:
    steps.steps.append(step('positions', 'position', max_tokens=model.max_tokens))
    steps.parameters['position/embedding'] = 'position'
  if lanes > 1:
    steps.add('split', lanes=lanes)
  for name, values in kept.sites(model):
    if name.endswith('__mlp'):
      _feed_forward(steps, name, values, kept, lanes, model.unit)
      continue
    heads, meet = kept.counts(f'{name}/heads', lanes), values.get(LANE, True)
    if any(heads):
      size = model.width // model.num_heads
      fields = {'size': size, 'causal': model.causal, 'rope': rope, 'meet': meet}
      steps.add('attention', name, heads=heads, **fields)
    else:
      steps.shift(name, lanes, meet, True)
  if lanes > 1:
    steps.add('mean')
  if not model.num_tokens:
    steps.add('mean')
  steps.add('head', 'readout', num_classes=model.num_classes)
  return steps.done()


def _convnet(model: ConvNet, kept: Kept) -> Plan:
  steps = _Steps()
  steps.add('images', least=2 ** (len(model.channels) - 1))
  steps.add('conv', 'embed', features=model.channels[0], side=3)
  stages = iter(model.channels[1:])
  for name, values in kept.sites(model):
    if name.endswith('__down'):
      steps.add('down', name, channels=next(stages))
    elif kept.counts(f'{name}/hidden')[0]:
      hidden = kept.counts(f'{name}/hidden')[0]
      steps.add('conv_block', name, hidden=hidden, joins=_joins(values))
    else:
      steps.shift(name, 1, True, True)
  steps.add('pooled_head', 'readout', num_classes=model.num_classes)
  return steps.done()


# The networks that become steps.
MAKERS = {MLP: _mlp, DenseStack: _dense_stack, Transformer: _transformer, ConvNet: _convnet}
