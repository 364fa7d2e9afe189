"""The network that `config.model` names."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from additive_jax import models
from additive_jax.batches import is_array, rows
from additive_jax.data import ArraySplit, Data
from additive_jax.data.values import constant_target
from additive_jax.data.weights import unweighted
from additive_jax.errors import UserError, one_line
from additive_jax.experiments.options import ModelOptions
from additive_jax.models import Additive
from additive_jax.models.additive import gate_names
from additive_jax.models.contract import check_network
from additive_jax.models.token_inputs import MASK, SEGMENTS, TOKENS
from additive_jax.run.expected import check_task
from additive_jax.run.measures import Determination, TopK
from additive_jax.run.tasks import LABELLED, Task
from additive_jax.testing.check import check_quickly

log = logging.getLogger('additive_jax')

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
    text = data.task_name == 'language'
    values |= {'num_layers': options.num_blocks, 'causal': text}
    values |= {'num_tokens': (data.num_tokens or data.num_outputs) if text else 0}
    values |= {'max_tokens': _tokens(data, options.patch_size)}
  return kind(num_classes=data.num_outputs, **values)


def _kind(data):
  """What the examples of a data set are, in a word."""
  x = data.train[np.zeros(1, np.int64)][0]
  packed = isinstance(x, Mapping) and TOKENS in x and set(x) <= {TOKENS, MASK, SEGMENTS}
  if not is_array(x) and not packed:
    return 'several inputs'
  if data.task_name == 'language':
    return 'text'
  return 'images' if len(data.example_shape) > 1 else 'a table'


def _tokens(data, patch_size):
  """The number of tokens of one example, as a transformer sees it."""
  if data.task_name == 'language':
    shape = data.example_shape
    return shape[TOKENS][0] if isinstance(shape, Mapping) else shape[0]
  height, width = data.example_shape[:2]
  return max(1, (height // patch_size) * (width // patch_size))


def _own_model(options, data):
  """The network of a user's class, `module:Class`."""
  module, _, attribute = options.name.partition(':')
  name = f'config.model.name {options.name!r}'
  try:
    make = getattr(importlib.import_module(module), attribute)
  except (Exception, SystemExit) as error:
    raise UserError(
      f'{name}: {_said(error)}; expected MODULE:CLASS that Python can import (PYTHONPATH=. adds '
      'the current directory)'
    ) from error
  try:
    model = make(**_sizes_of_outputs(make, options.kwargs, data))
    gate_names(model)
  except (Exception, SystemExit) as error:
    raise UserError(
      f'{name} with {options.kwargs}: {_said(error)}; expected an additive module that takes '
      'num_classes'
    ) from error
  return model


def _sizes_of_outputs(make: Any, kwargs: Mapping[str, Any], data: Data) -> dict[str, Any]:
  """Returns what a network of the user's is made with: a language model without num_classes has its
  vocabulary, which may be larger than that of the data, as num_tokens."""
  taken = inspect.signature(make).parameters
  if data.task_name == 'language' and 'num_classes' not in taken and 'num_tokens' in taken:
    return {'num_tokens': data.num_outputs, **kwargs}
  return {**kwargs, 'num_classes': data.num_outputs}


def _said(error: BaseException) -> str:
  """Returns what stopped a user's module, in one line."""
  if isinstance(error, SystemExit):
    return f'it ends the program (sys.exit, {error.code})'
  plain = isinstance(error, ImportError | AttributeError | TypeError | ValueError)
  text = one_line(error) if isinstance(error, Exception) else ''
  return text if plain else f'{type(error).__name__}: {text}'


def check_fits(model: Any, data: Data, task: Task) -> None:
  """Checks a network before it is trained: that it takes the data and, if it is a user's, that it
  keeps the contract as far as `testing.check.check_quickly` sees.

  Raises:
    UserError: where it does not.
  """
  x, y = data.train[np.arange(min(2, len(data.train)))]
  if not type(model).__module__.startswith('additive_jax.'):
    check_quickly(model, (x, y), task=task)
  check_task(model, task, x, y)
  for metric in task.metrics:
    top = getattr(metric, 'function', None)
    if isinstance(top, TopK) and top.k >= data.num_outputs:
      raise UserError(
        f'metric {metric.name} of {data.num_outputs} classes, which is always 1: expected fewer'
      )
  outputs = check_network(model, rows(x, slice(1))).shape
  if data.task_name != 'regression' and outputs[-1] < data.num_outputs:
    tokens, is_text = getattr(model, 'num_tokens', 0), data.task_name == 'language'
    of = f' with num_tokens {tokens}' if tokens and is_text else ''
    what = 'size of the vocabulary' if is_text else 'classes'
    raise UserError(
      f'{type(model).__name__}{of} gives outputs {outputs} for one example: expected '
      f'{data.num_outputs} on the last axis, the {what} of {data.name}'
    )
  if data.task_name in LABELLED and outputs[-1] > data.num_outputs:
    # A vocabulary may be padded to a size that devices like.
    level = logging.INFO if data.task_name == 'language' else logging.WARNING
    log.log(
      level,
      '%s gives %d outputs, and %s has %d classes: the other %d are never right',
      type(model).__name__,
      outputs[-1],
      data.name,
      data.num_outputs,
      outputs[-1] - data.num_outputs,
    )
  if data.task_name == 'language' and not getattr(model, 'causal', True) and _is_next(x, y):
    raise UserError(
      f'{type(model).__name__}, whose tokens see those that follow, for {data.name}, whose targets '
      'are these: expected a causal network, or targets of another kind'
    )
  if data.task_name == 'regression':
    _check_targets(data, task)


def _is_next(x: Any, y: Any) -> bool:
  """Whether the targets of a language are the tokens that follow, but at the ends of documents."""
  tokens, following = (x if is_array(x) else x.get(TOKENS)), unweighted(y)
  if np.shape(tokens) != np.shape(following) or np.shape(tokens)[1] < 3:
    return False
  same = np.asarray(tokens)[:, 1:] == np.asarray(following)[:, :-1]
  return bool(same.mean() > 0.8)


def _check_targets(data, task):
  """Refuses a target that is the same in all training examples, from which nothing is learnt; warns
  where it is the same in all that are judged, whose R² is undefined."""
  for part, split in data.splits.items():
    same = constant_target(split.y) if isinstance(split, ArraySplit) else None
    if same is None:
      continue
    told = f'{data.name}, {part}: target {same[0]} is {same[1]:g} in all {len(split)} examples'
    if part == 'train':
      raise UserError(f'{told}: expected one that varies')
    if any(isinstance(metric, Determination) for metric in task.metrics):
      log.warning('%s: R² is undefined, and counts as 1 where all are predicted, else as 0', told)
