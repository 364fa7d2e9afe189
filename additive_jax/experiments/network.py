"""The network that `config.model` names."""

from __future__ import annotations

import importlib
from typing import Any

from additive_jax import models
from additive_jax.data import Data
from additive_jax.errors import UserError
from additive_jax.experiments.options import ModelOptions
from additive_jax.models import Additive
from additive_jax.models.additive import gate_names

# What each network of the library takes, in words.
TASKS = {
  'mlp': 'images or a table',
  'dense_stack': 'images or a table',
  'transformer': 'images or text',
  'convnet': 'images',
  'lenet': 'images',
  'vgg': 'images',
}


def make_model(options: ModelOptions, data: Data) -> Additive:
  """Returns the network of `config.model`, with as many outputs as the data has.

  Raises:
    UserError: for a class that cannot be imported, or options or data that it does not take.

  >>> make_model(ModelOptions(num_blocks=2), aj.data.load('digits')).space.names
  ('block_00/residual', 'block_01/residual')
  """
  if ':' in options.name:
    return _own_model(options, data)
  if options.kwargs:
    raise UserError(f'config.model.kwargs {options.kwargs} for {options.name}: expected none')
  if _kind(data) not in TASKS[options.name]:
    raise UserError(
      f'model {options.name} on {data.name}, {_kind(data)}: expected {TASKS[options.name]}'
    )
  common: dict[str, Any] = {
    'num_classes': data.num_outputs,
    'gates': options.gates,
    'num_chunks': options.num_chunks,
  }
  hidden = options.hidden[0] if len(options.hidden) == 1 else options.hidden
  if options.name == 'mlp':
    return models.MLP(
      options.num_blocks, options.width, hidden, num_lanes=options.num_lanes, **common
    )
  if options.name == 'dense_stack':
    return models.DenseStack(options.hidden, **common)
  if options.name == 'transformer':
    text = data.task == 'language'
    return models.Transformer(
      options.num_blocks,
      options.width,
      options.num_heads,
      hidden,
      num_tokens=data.num_outputs if text else 0,
      patch_size=options.patch_size,
      causal=text,
      positions=options.positions,
      max_tokens=_tokens(data, options.patch_size),
      unit=options.unit,
      num_lanes=options.num_lanes,
      **common,
    )
  if options.name == 'convnet':
    return models.ConvNet(options.channels, options.blocks_per_stage, **common)
  return models.VGG(options.channels, **common) if options.name == 'vgg' else models.LeNet(**common)


def _kind(data):
  """What the examples of a data set are, in a word."""
  if data.task == 'language':
    return 'text'
  return 'images' if len(data.example_shape) > 1 else 'a table'


def _tokens(data, patch_size):
  """The number of tokens of one example, as a transformer sees it."""
  if data.task == 'language':
    return data.example_shape[0]
  height, width = data.example_shape[:2]
  return max(1, (height // patch_size) * (width // patch_size))


def _own_model(options, data):
  """The network of a user's class, `module:Class`."""
  module, _, attribute = options.name.partition(':')
  try:
    make = getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError, ValueError) as error:
    raise UserError(f'config.model.name {options.name!r}: {error}') from error
  try:
    model = make(**options.kwargs, num_classes=data.num_outputs)
    gate_names(model)
  except (TypeError, AttributeError) as error:
    raise UserError(
      f'config.model.name {options.name!r} with {options.kwargs}: {error}; '
      'expected an additive module that takes num_classes'
    ) from error
  return model
