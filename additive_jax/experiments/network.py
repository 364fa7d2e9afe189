"""The network that `config.model` names."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from additive_jax import models
from additive_jax.data import Data
from additive_jax.errors import UserError
from additive_jax.experiments.options import ModelOptions
from additive_jax.models import Additive
from additive_jax.models.additive import gate_names

# The networks of the library, and what each takes, in words.
NETWORKS: dict[str, tuple[Any, str]] = {
  'mlp': (models.MLP, 'images or a table'),
  'dense_stack': (models.DenseStack, 'images or a table'),
  'transformer': (models.Transformer, 'images or text'),
  'convnet': (models.ConvNet, 'images'),
  'lenet': (models.LeNet, 'images'),
  'vgg': (models.VGG, 'images'),
}


def make_model(options: ModelOptions, data: Data) -> Additive:
  """Returns the network of `config.model`, with as many outputs as the data has.

  What the network takes by the name of an option is that option.

  Raises:
    UserError: for a class that cannot be imported, or options or data that it does not take.

  >>> make_model(ModelOptions(num_blocks=2), aj.data.load('digits')).space.names
  ('block_00/residual', 'block_01/residual')
  """
  if ':' in options.name:
    return _own_model(options, data)
  if options.kwargs:
    raise UserError(f'config.model.kwargs {options.kwargs} for {options.name}: expected none')
  kind, tasks = NETWORKS[options.name]
  if _kind(data) not in tasks:
    raise UserError(f'model {options.name} on {data.name}, {_kind(data)}: expected {tasks}')
  fields = {field.name for field in dataclasses.fields(kind)} - {'name'}
  values = {name: getattr(options, name) for name in fields if hasattr(options, name)}
  if kind in (models.MLP, models.Transformer) and len(options.hidden) == 1:
    values['hidden'] = options.hidden[0]
  if kind is models.Transformer:
    text = data.task == 'language'
    values |= {'num_layers': options.num_blocks, 'causal': text}
    values |= {'num_tokens': data.num_outputs if text else 0}
    values |= {'max_tokens': _tokens(data, options.patch_size)}
  return kind(num_classes=data.num_outputs, **values)


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
    raise UserError(
      f'config.model.name {options.name!r}: {error}; expected MODULE:CLASS that Python can import '
      '(PYTHONPATH=. adds the current directory)'
    ) from error
  try:
    model = make(**options.kwargs, num_classes=data.num_outputs)
    gate_names(model)
  except (TypeError, AttributeError) as error:
    raise UserError(
      f'config.model.name {options.name!r} with {options.kwargs}: {error}; '
      'expected an additive module that takes num_classes'
    ) from error
  return model
