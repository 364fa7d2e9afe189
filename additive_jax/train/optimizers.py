"""Any Optax optimizer and schedule, named in the config."""

from __future__ import annotations

import difflib
import inspect

import jax
import jax.numpy as jnp
import optax

from additive_jax.errors import UserError


def make_optimizer(config, num_steps: int) -> optax.GradientTransformation:
  """Clip by global norm, then the named optimizer on the named schedule.

  Args:
    config: has `learning_rate`; `optimizer.name`, a function of Optax, and `optimizer.kwargs`;
      `schedule.name`, a schedule of Optax or 'constant', and `schedule.kwargs`; `clip_norm`, 0 for
      none.
    num_steps: length of the run. A schedule's argument that ends in `_steps` and is given as a
      float is a share of it.

  Raises:
    UserError: for a name that Optax does not have or an argument that its function does not take.
  """
  schedule = make_schedule(config, num_steps)
  make = _find(config.optimizer.name, 'optimizer')
  kwargs = dict(config.optimizer.kwargs)
  if 'learning_rate' in kwargs:
    raise UserError(
      f"'learning_rate' {kwargs['learning_rate']} is no argument of optimizer.kwargs: "
      'expected it as config.learning_rate'
    )
  _check_kwargs(make, kwargs, config.optimizer.name)
  if config.clip_norm < 0:
    raise UserError(f'clip_norm {config.clip_norm}: expected 0 (no clipping) or a positive number')
  try:
    optimizer = make(learning_rate=schedule, **kwargs)
    jax.eval_shape(lambda w: optimizer.update(w, optimizer.init(w), w), {'w': jnp.zeros((2, 2))})
  except (TypeError, ValueError) as error:
    reason = ' '.join(str(error).split())[:160]
    raise UserError(
      f'optimizer.kwargs {kwargs} of {config.optimizer.name!r}: expected values that Optax takes '
      f'({reason})'
    ) from error
  if config.clip_norm:
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
  return optimizer


def make_schedule(config, num_steps: int) -> optax.Schedule:
  """The learning rate as a function of the step; `config.learning_rate` is its first or its peak
  value.
  """
  if not config.learning_rate > 0:
    raise UserError(f'learning_rate {config.learning_rate}: expected a positive number')
  if config.schedule.name == 'constant':
    return optax.constant_schedule(config.learning_rate)
  make = _find(config.schedule.name, 'schedule')
  takes = inspect.signature(make).parameters
  kwargs = dict(config.schedule.kwargs)
  _check_kwargs(make, kwargs, config.schedule.name)
  for name, value in kwargs.items():
    if name.endswith('_steps') and isinstance(value, float):
      if not 0 <= value <= 1:
        raise UserError(f'schedule.kwargs.{name} {value}: expected a share of the run in [0, 1]')
      kwargs[name] = max(1, round(value * num_steps))
  if 'peak_value' in takes:
    start = {'init_value': 0.0} if 'init_value' in takes else {}
    kwargs = start | {'peak_value': config.learning_rate} | kwargs
  elif 'init_value' in takes:
    kwargs = {'init_value': config.learning_rate} | kwargs
  needed = [
    name
    for name, parameter in takes.items()
    if parameter.default is inspect.Parameter.empty
    and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
  ]
  missing = [name for name in needed if name not in kwargs]
  if missing:
    raise UserError(
      f'schedule {config.schedule.name!r} without {", ".join(missing)}: '
      'expected them in schedule.kwargs'
    )
  try:
    schedule = make(**kwargs)
    jax.eval_shape(schedule, jnp.int32(0))
  except (TypeError, ValueError) as error:
    reason = ' '.join(str(error).split())[:160]
    raise UserError(
      f'schedule.kwargs {kwargs} of {config.schedule.name!r}: expected values that Optax takes '
      f'({reason})'
    ) from error
  return schedule


def _find(name: str, kind: str):
  found = getattr(optax, name, None)
  takes = inspect.signature(found).parameters if callable(found) else {}
  wanted = name.endswith('_schedule') if kind == 'schedule' else 'learning_rate' in takes
  if not wanted or not callable(found):
    known = [n for n in dir(optax) if n.endswith('_schedule') or kind == 'optimizer']
    near = difflib.get_close_matches(name, known, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    raise UserError(f'{kind} {name!r}: expected the name of an Optax {kind}{hint}')
  return found


def _check_kwargs(make, kwargs, name):
  takes = inspect.signature(make).parameters
  if any(p.kind is p.VAR_KEYWORD for p in takes.values()):
    return
  for key in kwargs:
    if key not in takes:
      raise UserError(
        f'{key!r} is no argument of optax.{name}: expected some of {", ".join(takes)}'
      )
