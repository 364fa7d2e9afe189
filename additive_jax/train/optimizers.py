"""Any optimizer of Optax or of `optax.contrib`, and any schedule of Optax, named in the config."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import PyTree
from ml_collections import ConfigDict

from additive_jax.errors import UserError, one_line


def make_optimizer(config: ConfigDict, num_steps: int) -> optax.GradientTransformation:
  """Returns clipping by global norm, then the named optimizer on the named schedule.

  Args:
    config: has `learning_rate`; `optimizer.name`, a function of Optax or of `optax.contrib`, and
      `optimizer.kwargs`; `schedule.name`, a schedule of Optax or 'constant', and `schedule.kwargs`;
      `clip_norm`, 0 for none.
    num_steps: length of the run. A schedule's argument that ends in `_steps` and is given as a
      float is a share of it.

  Raises:
    UserError: for a name that Optax does not have or an argument that its function does not take.

  >>> cosine = {'name': 'cosine_decay_schedule', 'kwargs': {'decay_steps': 1.0}}
  >>> adam = {'name': 'adam', 'kwargs': {'b1': 0.8}}
  >>> options = {'learning_rate': 0.1, 'clip_norm': 0.0, 'optimizer': adam, 'schedule': cosine}
  >>> optimizer = make_optimizer(ConfigDict(options), num_steps=200)
  >>> print(optimizer.update(jnp.ones(1), optimizer.init(jnp.ones(1)))[0].round(3))
  [-0.1]
  """
  schedule = make_schedule(config, num_steps)
  name, kwargs = config.optimizer.name, dict(config.optimizer.kwargs)
  function = _find(name, 'optimizer')
  if 'learning_rate' in kwargs:
    raise UserError(
      f'config.optimizer.kwargs.learning_rate {kwargs["learning_rate"]!r}: expected it as '
      'config.learning_rate'
    )
  _check_arguments(function, name, kwargs, 'optimizer')
  if not 0 <= config.clip_norm < math.inf:
    raise UserError(
      f'config.clip_norm {config.clip_norm}: expected 0 (no clipping) or a positive number'
    )

  try_out = lambda optimizer: _tried(optimizer, {'w': jnp.zeros((2, 2))})
  make = functools.partial(function, learning_rate=schedule)
  optimizer = _made(make, kwargs, try_out, f'config.optimizer.kwargs {kwargs} of {name!r}')
  if config.clip_norm:
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
  return optimizer


def make_schedule(config: ConfigDict, num_steps: int) -> optax.Schedule:
  """Returns the learning rate as a function of the step; `config.learning_rate` is its first or its
  peak value.

  >>> linear = {'name': 'linear_schedule', 'kwargs': {'end_value': 0.0, 'transition_steps': 0.5}}
  >>> schedule = make_schedule(ConfigDict({'learning_rate': 0.1, 'schedule': linear}), 100)
  >>> [round(float(schedule(step)), 3) for step in (0, 25, 50, 99)]
  [0.1, 0.05, 0.0, 0.0]

  Args:
    config: has `learning_rate`, `schedule.name` and `schedule.kwargs`; see `make_optimizer`.
    num_steps: length of the run.

  Raises:
    UserError: as `make_optimizer` does.
  """
  if not 0 < config.learning_rate < math.inf:
    raise UserError(f'config.learning_rate {config.learning_rate}: expected a positive number')
  name, kwargs = config.schedule.name, dict(config.schedule.kwargs)
  if name == 'constant':
    return optax.constant_schedule(config.learning_rate)
  function = _find(name, 'schedule')
  takes = _check_arguments(function, name, kwargs, 'schedule')
  for key, value in kwargs.items():
    if key.endswith('_steps') and isinstance(value, float):
      if not 0 <= value <= 1:
        raise UserError(
          f'config.schedule.kwargs.{key} {value}: expected a share of the run in [0, 1]'
        )
      kwargs[key] = max(1, round(value * num_steps))
  if 'peak_value' in takes:
    start = {'init_value': 0.0} if 'init_value' in takes else {}
    kwargs = start | {'peak_value': config.learning_rate} | kwargs
  elif 'init_value' in takes:
    kwargs = {'init_value': config.learning_rate} | kwargs
  needed = [key for key, parameter in takes.items() if _is_needed(parameter)]
  missing = [key for key in needed if key not in kwargs]
  if missing:
    raise UserError(
      f'config.schedule.name {name!r} without {", ".join(missing)}: expected them in '
      'config.schedule.kwargs'
    )
  try_out = lambda schedule: jax.eval_shape(schedule, jnp.int32(0))
  return _made(function, kwargs, try_out, f'config.schedule.kwargs {kwargs} of {name!r}')


def _is_needed(parameter):
  variable = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
  return parameter.default is inspect.Parameter.empty and not variable


def _find(name, kind):
  """Returns the optimizer or schedule of Optax of that name."""
  if not _suits(name, kind):
    names = [n for module in (optax, optax.contrib) for n in dir(module) if _suits(n, kind)]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    expected = 'schedule' if kind == 'schedule' else 'optimizer that takes a learning rate'
    raise UserError(f'config.{kind}.name {name!r}: expected the name of an Optax {expected}{hint}')
  return _function(name)


def _function(name):
  """Returns what is called so in `optax.contrib`, else in Optax; None where nothing is."""
  return getattr(optax.contrib, name, None) or getattr(optax, name, None)


def _suits(name, kind):
  """Whether Optax has an optimizer or a schedule of that name."""
  function = _function(name)
  if not callable(function):
    return False
  if kind == 'schedule':
    return name.endswith('_schedule')
  try:
    return 'learning_rate' in inspect.signature(function).parameters
  except ValueError:  # of what is written in C
    return False


def arguments_taken(
  kind: str, name: str, given: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns arguments for an optimizer or a schedule, without those that it does not take and that
  have their default value, so that no one has asked for them.

  >>> arguments_taken('optimizer', 'adam', {'weight_decay': 1e-4}, {'weight_decay': 1e-4})
  {}
  >>> arguments_taken('optimizer', 'adam', {'weight_decay': 0.1}, {'weight_decay': 1e-4})
  {'weight_decay': 0.1}

  Args:
    kind: 'optimizer' or 'schedule'.
    name: the function's, in Optax.
    given: the arguments.
    defaults: those of the default optimizer or schedule.
  """
  if not _suits(name, kind):
    return dict(given)
  takes = inspect.signature(_function(name)).parameters
  unasked = lambda key: key not in takes and key in defaults and given[key] == defaults[key]
  return {key: value for key, value in given.items() if not unasked(key)}


def _check_arguments(function, name, kwargs, kind):
  """Returns the parameters of a function of Optax, which must take `kwargs`."""
  for key, value in kwargs.items():
    if isinstance(value, float) and not math.isfinite(value):
      raise UserError(f'config.{kind}.kwargs.{key} {value}: expected a finite number')
  takes = inspect.signature(function).parameters
  any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
  unknown = [] if any_name else [key for key in kwargs if key not in takes]
  if unknown:
    expected = ', '.join(takes)
    raise UserError(
      f'config.{kind}.kwargs: {unknown[0]!r} is no argument of optax.{name}: expected some of '
      f'{expected}'
    )
  return takes


def _made(function, kwargs, try_out, description):
  """Returns `function(**kwargs)` once `try_out` of it passes."""
  try:
    result = function(**kwargs)
    try_out(result)
  except (TypeError, ValueError) as error:
    if _needs_more(error):
      raise UserError(f'{description}: {_more_than_a_gradient(error)}') from error
    reason = ' '.join(str(error).split())[:160]
    raise UserError(f'{description}: expected values that Optax takes ({reason})') from error
  return result


def check_optimizer(optimizer: optax.GradientTransformation, params: PyTree) -> None:
  """Raises `UserError` for an optimizer that needs more than a gradient, its state and the pool, or
  whose state changes its form. Computes nothing.

  >>> check_optimizer(optax.adam(1e-3), {'w': jnp.zeros(2)})
  >>> check_optimizer(optax.lbfgs(), {'w': jnp.zeros(2)})
  Traceback (most recent call last):
  additive_jax.errors.UserError: an optimizer that needs more than a gradient (update_fn() missing 3
  required keyword-only arguments: 'value', 'grad', and 'value_fn'): expected one such as adamw

  Args:
    params: the pool, of arrays or shapes.
  """
  leaves, form = jax.tree.flatten(params)
  _checked(optimizer, form, tuple((leaf.shape, leaf.dtype) for leaf in leaves))


@functools.lru_cache(maxsize=64)
def _checked(optimizer, form, leaves):
  params = jax.tree.unflatten(form, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
  try:
    before, after = _tried(optimizer, params)
  except Exception as error:
    if _needs_more(error):
      raise _more_than_a_gradient(error) from error
    raise UserError(
      f'an optimizer that fails on the pool ({type(error).__name__}: {one_line(error)[:160]}): '
      'expected one that suits it, such as adamw'
    ) from error
  changed = [
    f'{b.dtype} {b.shape} into {a.dtype} {a.shape}'
    for b, a in zip(jax.tree.leaves(before), jax.tree.leaves(after))
    if (b.shape, b.dtype) != (a.shape, a.dtype)
  ]
  if changed or jax.tree.structure(before) != jax.tree.structure(after):
    how = f', {changed[0]}' if changed else ''
    raise UserError(
      f'an optimizer whose state changes its form in a step{how}: expected one that keeps it'
    )


def _tried(optimizer, params):
  """Returns the shapes of an optimizer's state before and after a step."""
  state = jax.eval_shape(optimizer.init, params)
  return state, jax.eval_shape(optimizer.update, params, state, params)[1]


def _needs_more(error) -> bool:
  """Returns whether an update has failed for want of arguments."""
  return isinstance(error, TypeError) and 'missing' in str(error) and 'argument' in str(error)


def _more_than_a_gradient(error) -> UserError:
  return UserError(
    f'an optimizer that needs more than a gradient ({one_line(error).rpartition(">.")[2]}): '
    'expected one such as adamw'
  )
