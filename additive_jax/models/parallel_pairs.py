"""Neighbouring sites that may read the same stream: equal work in less depth."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from additive_jax.errors import UserError
from additive_jax.gates.sums import GateValue, aligned, is_static
from additive_jax.models.additive import Additive, Inputs, Logits, Stream
from additive_jax.models.kinds import LANE, RESIDUAL
from additive_jax.models.last_layer import LastLayer
from additive_jax.models.side import side_of, stream_of, with_stream
from additive_jax.models.sites import read_sites

IN_TURN = 'in_turn'


class ParallelPairs(Additive):
  """A network of which each site may run beside the one before it.

  Each site with a residual gate but the first gets one gate more, `in_turn`, on the `+` that brings
  what the site before it added into what this one reads. On, the site reads the whole stream, as
  ever. Off, it reads the stream that the last site that ran has read: with f and g for the two,

    in turn   y = x + f(x) + g(x + f(x))
    parallel  y = x + f(x) + g(x)

  so the two can be computed at once, with the same parameters and FLOPs. A residual gate thus has
  three values: off, on, and on in parallel. Sites pair up two by two: one after a pair reads the
  whole stream, whatever its gate says. All-on is the network as it was, and the pool is its own.
  Source: the parallel layers of PaLM (Chowdhery et al. 2022, arXiv:2204.02311, section 2).

  Attributes:
    network: an additive network without lanes.

  >>> network = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> model, x = ParallelPairs(network), jnp.ones((5, 6))
  >>> model.space.names
  ('block_00/residual', 'block_01/residual', 'block_01/in_turn')
  >>> pool = network.init(jax.random.key(0), x)
  >>> bool((model.apply(pool, x) == network.apply(pool, x)).all())
  True
  """

  network: Any

  def __post_init__(self) -> None:
    if isinstance(self.network, nn.Module):
      self.network = Held(self.network)  # else Flax makes its parameters a part of this module's
    super().__post_init__()

  def setup(self) -> None:
    # In this module's own scope, so that the pool is the network's, and unknown to Flax, which
    # would take it for a submodule.
    inner = self.network.module.clone(parent=self.scope)
    object.__setattr__(self, 'inner', inner)
    sites, first = [], True
    for site, module in zip(read_sites(inner.sites), inner.sites):
      if LANE in site.names:
        raise UserError(
          f'{type(inner).__name__} with lanes: expected a network without them, for a pair reads '
          'one stream'
        )
      more = (IN_TURN,) if site.has_residual and not first else ()
      names, name = site.names + more, f'{module.name}_in_pair'
      sites.append(Paired(module, names, site.label, site.adds, name=name))
      first = first and not site.has_residual
    self.sites = sites

  def embed(self, x: Inputs) -> Stream:
    """Returns the stream [B, 2, ..., D]: that of now, and the one that the last site has read."""
    h = self.inner.embed(x)
    return with_stream(h, _pair(stream_of(h), stream_of(h)))

  def readout(self, h: Any, side: PyTree | None = None) -> Logits:
    """Returns the logits of the stream of now."""
    return self.inner.readout(h[:, 0], **side_of(self.inner.readout, side))

  def last_layer(self, h: Any, side: PyTree | None = None) -> LastLayer:
    """Returns what the network's gives."""
    return self.inner.last_layer(h[:, 0], **side_of(self.inner.last_layer, side))


@dataclasses.dataclass(frozen=True)
class Held:
  """A module that is no submodule of the one that holds it."""

  module: nn.Module


class Paired(nn.Module):
  """A site that reads one of two streams.

  Attributes:
    site: of the network.
    gates: their names.
    label: of the site.
    adds: whether it gives what is added.
  """

  site: nn.Module
  gates: tuple[str, ...]
  label: str
  adds: bool

  def __call__(
    self, h: Float[Array, 'B two ...'], gates: Sequence[GateValue] = (), side: PyTree | None = None
  ) -> Float[Array, 'B two ...']:
    """Returns both streams after the site.

    Args:
      h: the stream of now and that which the last site has read.
      gates: the values of all but the residual one.
      side: of the stream.
    """
    now, before = h[:, 0], h[:, 1]
    gate, inner = True, tuple(gates)
    if IN_TURN in self.gates:
      *inner, gate = inner or (True,) * (len(self.gates) - 1)
    read = _mixed(gate, now, before)
    takes = side_of(self.site, side)
    if self.adds:
      new = now + self.site(read, **takes).astype(now.dtype)
    elif RESIDUAL in self.gates:
      new = now + (self.site(read, tuple(inner), **takes) - read)
    else:
      new = self.site(now, tuple(inner), **takes)
      return _pair(new, new)
    return _pair(new, _mixed(gate, now, new))


def _pair(now: Array, before: Array) -> Float[Array, 'B two ...']:
  return jnp.stack([now, before], axis=1)


def _mixed(gate: GateValue, on: Array, off: Array) -> Array:
  """Returns one of two streams, or of a gate between 0 and 1 a mean of them."""
  if is_static(gate):
    return on if gate else off
  gate = aligned(jnp.asarray(gate, on.dtype), on)
  return gate * on + (1 - gate) * off
