"""Batch normalisation in networks whose structures share a pool.

Every structure has activations of its own, and so statistics of its own. Training normalises by the
batch at hand, whichever structure it runs in. Stored statistics, the collection `batch_stats`, are
those of one structure: all-on, until `run.recalibrate` finds those of another. Judging takes what
is stored. Source: Yu & Huang 2019 (arXiv:1903.05134), section 3.3.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

log = logging.getLogger('additive_jax')
BATCH_STATS = 'batch_stats'  # the collection's name in Flax
ADVICE = (
  'additive_jax.models.BatchNorm, or nn.BatchNorm(use_running_average='
  "not self.is_mutable_collection('batch_stats'))"
)
Left = dict[tuple[str, ...], Array]


class BatchNorm(nn.BatchNorm):
  """Flax's `BatchNorm`, which takes the statistics of the batch in training and stored ones in
  judging without being told. Source: Ioffe & Szegedy 2015 (arXiv:1502.03167).

  >>> norm, x = BatchNorm(), jnp.array([[1.0], [3.0]])
  >>> variables = norm.init(jax.random.key(0), x)
  >>> norm.apply(variables, x).round(2).tolist()
  [[1.0], [3.0]]
  >>> norm.apply(variables, x, mutable=['batch_stats'])[0].round(2).tolist()
  [[-1.0], [1.0]]
  """

  @nn.compact
  def __call__(
    self, x: Float[Array, '...'], use_running_average: bool | None = None, **mask: Any
  ) -> Float[Array, '...']:
    """Returns x normalised.

    Args:
      use_running_average: whether by stored statistics; None: unless they may be written.
      mask: as in Flax.
    """
    if use_running_average is None and self.use_running_average is None:
      use_running_average = not self.is_mutable_collection(BATCH_STATS)
    return super().__call__(x, use_running_average, **mask)


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
  """How statistics of the batch are taken.

  Attributes:
    over: the axes of the mesh over which devices split it.
    left: the statistics of each module by its path, where they are wanted; else None.
  """

  over: tuple[str, ...]
  left: Left | None


_BATCH: contextvars.ContextVar[Batch | None] = contextvars.ContextVar('batch', default=None)


@contextlib.contextmanager
def of_batch(over: tuple[str, ...] = (), *, leaves: bool = False) -> Iterator[Left]:
  """Makes parts of networks normalise by the statistics of their batch while it is open.

  >>> norm = BatchNorm(use_bias=False, use_scale=False)
  >>> model, x = nn.Sequential([norm]), jnp.array([[1.0], [3.0]])
  >>> with of_batch(leaves=True) as left:
  ...   run_of_batch(lambda **flax: model.apply({'params': {}}, x, **flax)).shape
  (2, 1)
  >>> {'/'.join(path): value.tolist() for path, value in left.items()}
  {'layers_0/mean': [2.0], 'layers_0/var': [1.0]}

  Args:
    over: the axes of the mesh over which devices split the batch, inside of `shard_map`.
    leaves: whether what it gives gets the statistics, by path. Not around branches that are traced
      apart.
  """
  left: Left = {}
  token = _BATCH.set(Batch(over, left if leaves else None))
  try:
    with nn.intercept_methods(_interceptor):
      yield left
  finally:
    _BATCH.reset(token)


@contextlib.contextmanager
def of_stored() -> Iterator[None]:
  """Makes parts of networks normalise by stored statistics while it is open."""
  token = _BATCH.set(None)
  try:
    yield
  finally:
    _BATCH.reset(token)


def is_of_batch() -> bool:
  """Returns whether parts of networks normalise by the statistics of their batch now."""
  return _BATCH.get() is not None


def run_of_batch(apply: Callable[..., Any], mutable: Any = False) -> Any:
  """Returns what Flax's `apply` gives, with statistics of the batch where they are asked for.

  Args:
    apply: takes `mutable`.
    mutable: what else may change, and is given beside the result.
  """
  batch, others = _BATCH.get(), [mutable] if isinstance(mutable, str) else mutable
  if batch is None or others is True or BATCH_STATS in (others or ()):
    return apply(mutable=mutable) if mutable else apply()
  others = list(others or ())
  result, changed = apply(mutable=[*others, BATCH_STATS])
  changed = dict(changed)
  statistics = changed.pop(BATCH_STATS, {})
  if batch.left is not None:
    batch.left.update(flatten_dict(statistics))
  return (result, changed) if mutable else result


def has_statistics(variables: Mapping[str, Any]) -> bool:
  """Returns whether there are stored statistics among the variables of a network."""
  return bool(variables.get(BATCH_STATS))


@functools.cache
def _tell_of_frozen(name: str) -> None:
  """Warns once of a module that learns with stored statistics, which nothing changes."""
  log.warning(
    '%s normalises by stored statistics in training too, for use_running_average is True, and '
    'nothing learns these; if that is not meant: %s',
    name,
    ADVICE,
  )


def _interceptor(
  call: Callable[..., Any],
  args: tuple[Any, ...],
  kwargs: dict[str, Any],
  context: nn.module.InterceptorContext,
) -> Any:
  module, batch = context.module, _BATCH.get()
  if batch is None or context.method_name != '__call__' or not isinstance(module, nn.BatchNorm):
    return call(*args, **kwargs)
  if kwargs.get('use_running_average', (*args[1:2], module.use_running_average)[0]):
    _tell_of_frozen('/'.join(module.path))
  # Over all devices that share the batch, and no average with older statistics.
  fields = {'axis_name': module.axis_name, 'momentum': module.momentum}
  object.__setattr__(module, 'axis_name', module.axis_name or batch.over or None)
  object.__setattr__(module, 'momentum', 0.0)
  try:
    return call(*args, **kwargs)
  finally:
    for name, value in fields.items():
      object.__setattr__(module, name, value)
