"""What the trainings of a run start from, other than the pools that its seeds name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from additive_jax.errors import UserError, one_line, user_path
from additive_jax.experiments.options import Options, refused, replaced
from additive_jax.files.functions import digest_of, is_of_library, is_same
from additive_jax.models.additive import check_variables, initial_shapes
from additive_jax.models.batch_norm import BATCH_STATS
from additive_jax.models.contract import differences
from additive_jax.models.layer_sites import LAYER
from additive_jax.parallel import processes
from additive_jax.run.objectives import name_of
from additive_jax.run.tasks import Task
from additive_jax.transplant.foreign import digest, restore_pool

if TYPE_CHECKING:
  from additive_jax.experiments.opening import Opening
  from additive_jax.pretrained import Pretrained

log = logging.getLogger('additive_jax')

BYTES = 256  # tokens of a network of bytes
TEXTS = ('text:', 'stdlib')  # the sources that a tokenizer is for


def start_of(config: Options, variables: PyTree | None, model: Any, x: Any) -> PyTree | None:
  """Returns the pool that trainings start from, on the host; None for that of each seed.

  Args:
    config: with `init_from`, from where the pool is read.
    variables: `{'params': pool}` in its place, or None. Its `batch_stats`, if it has any, are those
      of that pool; a training normalises by its batches, and has statistics of its own at the end.
    model: the network of the run.
    x: a batch of inputs, of which the shape matters.

  Raises:
    UserError: for both, a pool of another network or with numbers that are not finite, or Exp 5: of
      its two sides one begins untrained, and the other is grown from small networks that the run
      trains.
  """
  if config.experiment == 'booster' and (config.init_from or variables is not None):
    given = f'config.init_from {config.init_from!r}' if config.init_from else 'variables'
    raise UserError(
      f'{given} in Exp 5: expected none, since it compares a large network that begins untrained '
      'with one that is grown from the small ones it trains'
    )
  if variables is not None and config.init_from:
    raise refused(config, 'init_from', expected="'' beside variables")
  if config.init_from:
    variables = restore_pool(user_path(config.init_from, 'config.init_from'), model, x)
  if variables is None:
    return None
  check_variables(variables)
  pool = flax.core.unfreeze(variables.get('params', {}))
  shapes = initial_shapes(model, x)
  if wrong := differences(pool, shapes['params']):
    raise UserError(f'variables of a pool with {wrong}: expected one of {type(model).__name__}')
  given = flax.core.unfreeze(variables.get(BATCH_STATS, {}))
  if given and (wrong := differences(given, shapes.get(BATCH_STATS, {}))):
    of_model = f'those of {type(model).__name__}, or none'
    raise UserError(f'variables of {BATCH_STATS} with {wrong}: expected {of_model}')
  return as_of_model(pool, model, x)


def with_pretrained(
  config: Options, opening: Opening
) -> tuple[Options, Opening, Pretrained | None]:
  """Returns options and opening with the network that `config.pretrained` names in place of a model
  and its pool, whose tokenizer is for text; and that network, None where it names none.

  Raises:
    UserError: beside a model or a pool that is given otherwise, and as `pretrained.load`.
  """
  if not config.pretrained:
    return config, opening, opening.get('pretrained')
  for name in ('model', 'variables'):
    if opening.get(name) is not None:
      raise UserError(f'{name}= with config.pretrained {config.pretrained!r}: expected one of them')
  if config.init_from:
    raise refused(config, 'init_from', 'pretrained', expected='one of them')
  from additive_jax.pretrained.loading import load_source, source_of

  path, options = user_path(config.pretrained, 'config.pretrained'), dict(config.model.kwargs)
  source = source_of(path)
  is_post_norm = getattr(source.family.network, 'post_norm', False)
  if config.experiment == 'prune' and not options and is_post_norm:
    # Its other gates alone have no form that the reference implementation runs.
    options = {'sites': LAYER}
    log.info('%s has its norms after its branches: gates are of whole layers', path)
  try:
    loaded = load_source(source, **options)
  except TypeError as error:
    raise UserError(
      f'config.model.kwargs {config.model.kwargs} with config.pretrained: expected arguments of '
      f'pretrained.load ({one_line(error)})'
    ) from error
  given: Opening = {**opening, 'model': loaded.model, 'variables': loaded.variables}
  is_text = opening.get('data') is None and config.data.name.startswith(TEXTS)
  longest, length = getattr(loaded.model, 'max_tokens', 0), config.data.sequence_length
  if is_text and longest and length > longest:
    expected = f'at most {longest}, the positions of {path.name}'
    raise refused(config, 'data.sequence_length', expected=expected)
  if is_text and not config.data.tokenizer:
    if loaded.tokenizer is None and (tokens := getattr(loaded.model, 'num_tokens', 0)) != BYTES:
      raise UserError(
        f'config.pretrained {config.pretrained!r} of {tokens} tokens without a tokenizer, for '
        f'{config.data.name}: expected config.data.tokenizer'
      )
    if loaded.tokenizer is not None:
      config = replaced(config, {'data.tokenizer': config.pretrained})
  return config, given, loaded


def as_of_model(pool: PyTree, model: Any, x: Any) -> PyTree:
  """Returns a pool of a model on the host, in the dtypes that the model gives it.

  Raises:
    UserError: for numbers that are not finite, or integers in place of floats.
  """

  def leaf(path: Any, array: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
    name, array = jax.tree_util.keystr(path, simple=True, separator='/'), np.asarray(array)
    of_numbers = lambda dtype: jnp.issubdtype(dtype, jnp.inexact)
    if of_numbers(array.dtype) != of_numbers(shape.dtype):
      raise UserError(f'variables with {name} of dtype {array.dtype}: expected {shape.dtype}')
    if not np.isfinite(array).all():
      wrong = np.size(array) - np.isfinite(array).sum()
      raise UserError(
        f'variables with {name}, {wrong} of {array.size} numbers not finite: expected finite ones'
      )
    return array.astype(shape.dtype)

  pool = processes.to_host(flax.core.unfreeze(pool))
  return jax.tree_util.tree_map_with_path(leaf, pool, initial_shapes(model, x)['params'])


def given(pool: PyTree | None, optimizer: Any) -> dict[str, Any]:
  """Returns what a run's directory knows of the pool that trainings start from, and of an optimizer
  from Python, which has no description."""
  known: dict[str, Any] = {} if pool is None else {'start': digest(pool)}
  return known if optimizer is None else known | {'optimizer': {'name': 'given from Python'}}


def code_of(
  task: Task, opening: Mapping[str, Any], stored: Mapping[str, Any] | None
) -> dict[str, str]:
  """Returns digests of the functions that a run was given in Python, by their names; {} for a run
  directory of a version that had none.

  Args:
    task: with its loss and metrics.
    opening: see `Opening`.
    stored: the config of the run directory, None where there is none.
  """
  of_task = [task.loss, *(getattr(metric, 'function', metric) for metric in task.metrics)]
  some = {name_of(part): part for part in of_task if not is_of_library(part)}
  some |= {part: opening[part] for part in ('augment', 'optimizer') if opening.get(part)}
  code = {name: digest_of(part) for name, part in some.items()}
  if stored is None:
    return code
  before = stored.get('code')
  if not isinstance(before, dict):
    return {}
  return {
    name: before[name] if name in before and is_same(str(before[name]), found) else found
    for name, found in code.items()
  }
