"""What becomes of an optimizer's updates: learning rates by path, frozen parts, and the mean of the
pool over the steps, which is kept beside what the optimizer knows.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Int, PyTree

from additive_jax.errors import UserError

WARM_UP = 10  # steps after which the mean is over about that many


class Averaging(NamedTuple):
  """What an optimizer keeps, and the mean of the pool beside it.

  Attributes:
    inner: of the optimizer.
    average: like the pool, float32.
  """

  inner: PyTree
  average: PyTree


def checked_patterns(patterns: Any, name: str) -> tuple[str, ...]:
  """Returns patterns of paths as a tuple.

  >>> checked_patterns(['embed', 'block_0.*/kernel'], 'frozen')
  ('embed', 'block_0.*/kernel')

  Raises:
    UserError: for anything else than regular expressions.
  """
  if isinstance(patterns, str) or not isinstance(patterns, Iterable):
    raise UserError(f'{name} {patterns!r}: expected a list of regular expressions of paths')
  for pattern in (patterns := tuple(patterns)):
    try:
      re.compile(pattern)
    except (re.error, TypeError) as error:
      raise UserError(f'{name} {pattern!r}: expected a regular expression ({error})') from error
  return patterns


def checked_rates(rates: Any) -> tuple[tuple[str, float], ...]:
  """Returns factors of the learning rate by path as pairs, which have a hash.

  >>> checked_rates({'embed': 0.1})
  (('embed', 0.1),)

  Raises:
    UserError: for patterns that are none, or factors that are negative or not finite.
  """
  pairs = tuple(rates.items()) if isinstance(rates, Mapping) else tuple(rates)
  checked_patterns([pattern for pattern, _ in pairs], 'learning_rates')
  for pattern, factor in pairs:
    is_number = isinstance(factor, int | float) and not isinstance(factor, bool)
    if not is_number or not 0 <= factor < math.inf:
      raise UserError(
        f'learning_rates {pattern!r} {factor!r}: expected what multiplies the learning rate, a '
        'number from 0'
      )
  return tuple((pattern, float(factor)) for pattern, factor in pairs)


def fits(pattern: str, path: str) -> bool:
  """Returns whether a regular expression fits a leaf's path, or the first parts of it.

  >>> fits('embed', 'embed/kernel'), fits('embed', 'embedding'), fits('.*/bias', 'block_00/in/bias')
  (True, False, True)
  """
  return re.fullmatch(f'(?:{pattern})(?:/.*)?', path) is not None


def paths_of(pool: PyTree) -> list[str]:
  """Returns the path of each leaf, in the order of the leaves.

  >>> paths_of({'embed': {'bias': 0, 'kernel': 1}})
  ['embed/bias', 'embed/kernel']
  """
  name = functools.partial(jax.tree_util.keystr, simple=True, separator='/')
  return [name(path) for path, _ in jax.tree.leaves_with_path(pool)]


def check_paths(pool: PyTree, patterns: Iterable[str], name: str) -> None:
  """Raises `UserError` for a pattern that fits no leaf.

  >>> check_paths({'embed': {'kernel': 1}}, ['embde'], 'frozen')
  Traceback (most recent call last):
  additive_jax.errors.UserError: frozen ['embde']: 'embde' fits no leaf of the pool; expected the
  path of some, such as embed/kernel

  Args:
    pool: of arrays or shapes.
    patterns: see `fits`; the keys of a dict too.
    name: of the option.
  """
  paths = paths_of(pool)
  for pattern in checked_patterns(list(patterns), name):
    if not any(fits(pattern, path) for path in paths):
      parts = {'/'.join(path.split('/')[:i]): path for path in paths for i in range(9, 0, -1)}
      near = [parts[part] for part in difflib.get_close_matches(pattern, parts, n=3, cutoff=0.3)]
      shown = ', '.join(dict.fromkeys(near or paths[:3]))
      raise UserError(
        f'{name} {patterns!r}: {pattern!r} fits no leaf of the pool; expected the path of some, '
        f'such as {shown}'
      )


def check_pool(pool: PyTree, rates: Mapping[str, float], frozen: tuple[str, ...]) -> None:
  """Raises `UserError` for rates or frozen parts that fit no leaf of a pool, or where nothing is
  left to learn.

  >>> check_pool({'embed': {'kernel': 1}}, {}, ('embed',))
  Traceback (most recent call last):
  additive_jax.errors.UserError: frozen ('embed',) is all of the pool: expected some of it to learn

  Args:
    pool: of arrays or shapes.
    rates, frozen: see `rule_of`.
  """
  check_paths(pool, dict(checked_rates(rates)), 'learning_rates')
  check_paths(pool, frozen, 'frozen')
  if frozen and all(jax.tree.leaves(is_frozen(pool, frozen))):
    raise UserError(f'frozen {frozen} is all of the pool: expected some of it to learn')


def is_frozen(pool: PyTree, frozen: tuple[str, ...]) -> PyTree:
  """Returns which leaves a pool has that do not learn, a pytree of Python bools like it.

  >>> is_frozen({'embed': {'kernel': 1}, 'readout': {'kernel': 1}}, ('embed',))
  {'embed': {'kernel': True}, 'readout': {'kernel': False}}
  """
  flags = [any(fits(pattern, path) for pattern in frozen) for path in paths_of(pool)]
  return jax.tree.unflatten(jax.tree.structure(pool), flags)


def without_frozen(gradient: PyTree, frozen: tuple[str, ...]) -> PyTree:
  """Returns a gradient with zeros for what is frozen, so that it counts in no norm."""
  if not frozen:
    return gradient
  stop = lambda g, stays: jnp.zeros_like(g) if stays else g
  return jax.tree.map(stop, gradient, is_frozen(gradient, frozen))


def kept_frozen(new: PyTree, old: PyTree, frozen: tuple[str, ...]) -> PyTree:
  """Returns a pool in which what is frozen is what it was."""
  if not frozen:
    return new
  return jax.tree.map(lambda n, o, stays: o if stays else n, new, old, is_frozen(old, frozen))


@functools.lru_cache(maxsize=64)
def rule_of(
  optimizer: optax.GradientTransformation,
  rates: tuple[tuple[str, float], ...] = (),
  frozen: tuple[str, ...] = (),
  ema: float = 0.0,
) -> optax.GradientTransformation:
  """Returns the optimizer with rates by path, without what is frozen, and with a mean beside it;
  the same object each time.

  Updates are multiplied by the product of the factors whose patterns fit a leaf, which is as if its
  learning rate were. Of what is frozen nothing is kept.

  >>> rule = rule_of(optax.sgd(0.1), (('a', 10.0),), ('b',))
  >>> pool = {'a': jnp.ones(()), 'b': jnp.ones(()), 'c': jnp.ones(())}
  >>> updates, _ = rule.update(pool | {'b': jnp.zeros(())}, rule.init(pool), pool)
  >>> jax.tree.map(float, updates)
  {'a': -1.0, 'b': 0.0, 'c': -0.10000000149011612}
  """
  if rates:
    optimizer = optax.chain(optimizer, _scaled(rates))
  if frozen:
    learns = lambda pool: jax.tree.map(lambda stays: not stays, is_frozen(pool, frozen))
    optimizer = optax.masked(optimizer, learns)
  return _averaging(optimizer) if ema else optimizer


def _scaled(rates: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
  def update(updates: PyTree, state: Any, params: Any = None) -> tuple[PyTree, Any]:
    del params
    factors = [
      math.prod(factor for pattern, factor in rates if fits(pattern, path))
      for path in paths_of(updates)
    ]
    leaves, form = jax.tree.flatten(updates)
    scaled = [u if factor == 1 else factor * u for u, factor in zip(leaves, factors)]
    return jax.tree.unflatten(form, scaled), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _averaging(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  def init(params: PyTree) -> Averaging:
    copy = lambda leaf: jnp.array(leaf, copy=True)
    return Averaging(optimizer.init(params), jax.tree.map(copy, params))

  def update(updates: PyTree, state: Averaging, params: Any = None) -> tuple[PyTree, Averaging]:
    updates, inner = optimizer.update(updates, state.inner, params)
    return updates, state._replace(inner=inner)

  return optax.GradientTransformation(init, update)


def averaged(opt_state: PyTree, params: PyTree, step: Int[Array, ''], ema: float) -> PyTree:
  """Returns what is kept after a step, with the mean moved towards the new pool.

  Mean and pool are mixed `d·mean + (1 − d)·pool` with d = min(ema, (1 + step)/(10 + step)), so that
  short trainings are not held at their start. Source: Polyak & Juditsky 1992 (SIAM J. Control
  Optim. 30); the warm-up is that of TensorFlow's moving averages.

  >>> state = Averaging((), {'w': jnp.array(0.0)})
  >>> state = averaged(state, {'w': jnp.array(1.0)}, jnp.array(10**6), ema=0.9)
  >>> round(float(state.average['w']), 3)
  0.1
  """
  if not ema:
    return opt_state
  decay = jnp.minimum(ema, (1 + step) / (WARM_UP + step))

  def mix(mean: Array, new: Array) -> Array:
    return (mean + (1 - decay) * (new - mean)).astype(mean.dtype)

  return opt_state._replace(average=jax.tree.map(mix, opt_state.average, params))


def average_of(opt_state: PyTree, params: PyTree) -> PyTree | None:
  """Returns the mean of the pool that is kept with an optimizer's state, or None: that of
  `averaged`, or that of a schedule-free optimizer, whose pool is between it and where it goes."""
  if isinstance(opt_state, Averaging):
    return opt_state.average
  free = _schedule_free(opt_state)
  if free is None:
    return None
  # Frozen leaves are in no state, and are what they were.
  is_frozen = lambda leaf: isinstance(leaf, optax.MaskedNode)
  mean = lambda z, y: y if is_frozen(z) else (y - (1 - free.b1) * z) / free.b1
  return jax.tree.map(mean, free.z, params, is_leaf=is_frozen)


def _schedule_free(opt_state: PyTree) -> Any:
  is_free = lambda node: isinstance(node, optax.contrib.ScheduleFreeState)
  return next((node for node in jax.tree.leaves(opt_state, is_leaf=is_free) if is_free(node)), None)


def with_inner(opt_state: PyTree, inner: PyTree, rates: tuple[tuple[str, float], ...]) -> PyTree:
  """Returns what a rule without frozen parts keeps, with another state of its optimizer.

  >>> rule = rule_of(optax.sgd(0.1, momentum=0.9), (('a', 2.0),), ema=0.9)
  >>> state = with_inner(rule.init({'a': 1.0}), 'another', (('a', 2.0),))
  >>> state.inner[0], float(state.average['a'])
  ('another', 1.0)
  """
  inner = (inner, optax.EmptyState()) if rates else inner
  return opt_state._replace(inner=inner) if isinstance(opt_state, Averaging) else inner


def check_rates(opt_state: PyTree, rates: tuple[tuple[str, float], ...]) -> None:
  """Raises `UserError` for rates by path with a schedule-free optimizer, whose updates are not in
  proportion to its rate."""
  if rates and _schedule_free(opt_state) is not None:
    raise UserError(f'learning_rates {dict(rates)} with a schedule-free optimizer: expected none')
