"""Sites: the submodules of a network that own its gates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from additive_jax.errors import UserError
from additive_jax.gates.sums import GateValue, choose, residual
from additive_jax.models.kinds import LANE, RESIDUAL
from additive_jax.models.side import WithSide

if TYPE_CHECKING:  # most code takes a stream as one value, whichever of the two it is
  Stream: TypeAlias = Any
else:
  Stream = Float[Array, 'B ...'] | WithSide


@dataclasses.dataclass(frozen=True)
class Site:
  """Which gates a site owns.

  Attributes:
    label: the first part of its gates' names: the module's `label`, or its name, with / for __.
    names: of its gates, in order.
    start: number of its first gate in the structure.
    adds: True for the simple form, whose module returns the value to add.
    casts: whether its module, which then has an attribute `casts`, adds to the stream in the dtype
      of the stream, and by itself computes in that of training, see `surrounding.in_branch_dtype`.
  """

  label: str
  names: tuple[str, ...]
  start: int
  adds: bool
  casts: bool = False

  @property
  def has_residual(self) -> bool:
    return self.names[:1] == (RESIDUAL,)

  @property
  def num_inner(self) -> int:
    """Gates other than the residual one."""
    return len(self.names) - self.has_residual

  @property
  def gates(self) -> slice:
    """The place of its gates in a structure."""
    return slice(self.start, self.start + len(self.names))

  @property
  def inner(self) -> slice:
    """The place of its gates other than the residual one in a structure."""
    return slice(self.start + self.has_residual, self.start + len(self.names))

  def step(
    self,
    call: Callable[..., Array],
    h: Stream,
    gates: Sequence[GateValue],
    scale: ArrayLike | None = None,
  ) -> Stream:
    """Returns the stream after this site.

    Args:
      call: the module, or a pure function like it, from a stream and values for the inner gates.
      h: the stream before it; the side of one with a side stays.
      gates: the value of each of its gates, in one of the forms of `gates.sums`.
      scale: what the site adds is multiplied by, where it has a residual gate; None is 1.
    """
    if isinstance(h, WithSide):
      side = h.side
      run = lambda h, *inner: call(WithSide(h, side), *inner)
      return WithSide(self.step(run, h.h, gates, scale), side)
    if self.adds:
      return residual(h, call, gates[0], scale)
    if self.has_residual:
      gate, inner = gates[0], tuple(gates[1:])
      if LANE in self.names and getattr(gate, 'ndim', 0) > 1:
        gate = jnp.expand_dims(gate, 1)  # lanes stand between examples and tokens
      return choose(h, lambda h: call(h, inner), gate, scale)
    return call(h, tuple(gates))


def read_sites(modules: Sequence[nn.Module]) -> tuple[Site, ...]:
  """Returns the sites of a list of submodules.

  Raises:
    UserError: for anything else, or names of gates that are none.
  """
  if not isinstance(modules, list | tuple):
    raise UserError(f'sites that are a {type(modules).__name__}: expected a list of submodules')
  sites, start = [], 0
  for module in modules:
    refuse_nnx(module, f'site {len(sites)}')
    if not isinstance(module, nn.Module):
      raise UserError(
        f'site {len(sites)}, a {type(module).__name__}: expected a flax.linen.Module made in setup'
      )
    names = getattr(module, 'gates', None)
    if expected := wrong_gates(names):
      raise UserError(f'site {module.name!r} with gates {names!r}: {expected}')
    label = getattr(module, 'label', None) or str(module.name).replace('__', '/')
    casts = names is not None and getattr(module, 'casts', False) is True
    names, adds = (RESIDUAL,) if names is None else tuple(names), names is None
    site = Site(label, names, start, adds, casts)
    sites.append(site)
    start += len(site.names)
  return tuple(sites)


def refuse_nnx(module: Any, role: str) -> None:
  """Raises `UserError` for a module of Flax NNX, which holds its parameters itself, so that they
  would be no part of a pool.

  >>> from flax import nnx
  >>> refuse_nnx(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), 'embed')
  Traceback (most recent call last):
  additive_jax.errors.UserError: embed is a Linear of flax.nnx: expected a module of flax.linen, as
  flax.nnx.bridge.to_linen(Linear, *arguments, name=...) makes it
  """
  kind = type(module)
  is_nnx = any(base.__module__.startswith('flax.nnx') for base in kind.__mro__)
  if is_nnx and not isinstance(module, nn.Module):
    raise UserError(
      f'{role} is a {kind.__name__} of flax.nnx: expected a module of flax.linen, as '
      f'flax.nnx.bridge.to_linen({kind.__name__}, *arguments, name=...) makes it'
    )


def wrong_gates(gates: Any) -> str | None:
  """Returns what is wrong with the attribute `gates` of a site; None if nothing is.

  >>> wrong_gates(('residual', 'left', 'left'))
  'expected different names'
  """
  if gates is None:
    return None
  is_names = isinstance(gates, tuple) and all(isinstance(name, str) for name in gates)
  if not is_names or not all(name and '/' not in name for name in gates):
    return (
      "expected a tuple of the names of the gates it owns, not empty and without '/' (call the "
      'attribute something else if it is about something else)'
    )
  if len(set(gates)) < len(gates):
    return 'expected different names'
  if RESIDUAL in gates[1:]:
    return f'expected {RESIDUAL!r} first, since it skips the whole site'
  return None
