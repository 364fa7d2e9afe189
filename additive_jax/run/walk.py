"""What it takes to rank structures by shared prefixes, from the model alone: how often each site
runs, and the FLOPs.

Site i runs once for every distinct prefix of gates that ends with it on. Of all 2^n structures of n
residual gates that is 2^i times for site i, 2^n − 1 times in all: half of the runs are those of the
last site, a quarter those of the one before. So a structure costs about two sites and the readout,
however many sites there are; and a gate is dear to rank at the end and cheap at the beginning.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int, PyTree

from additive_jax.gates.networks import num_networks
from additive_jax.models.additive import canonical, embed, readout, sites_of, update
from additive_jax.models.flops import count_flops
from additive_jax.models.reads import parts


@dataclasses.dataclass(frozen=True)
class Walk:
  """What one batch takes.

  Attributes:
    runs: of each site.
    networks: at which readout runs.
    flops: of one example, through the whole walk.
  """

  runs: tuple[int, ...]
  networks: int
  flops: float


def walk(model: Any, x: PyTree, bits: Bool[np.ndarray, 'S n'] | None = None) -> Walk:
  """Returns what `evaluate_structures` takes of structures, without running anything.

  >>> model = aj.models.MLP(num_blocks=20, width=4, hidden=8, num_classes=3)
  >>> found = walk(model, jax.ShapeDtypeStruct((1, 6), jnp.float32))
  >>> found.runs[:4], sum(found.runs) == 2**20 - 1, found.networks == 2**20
  ((1, 2, 4, 8), True, True)

  Args:
    x: the shape of some inputs [B, ...]; arrays will do.
    bits: the structures; None is all of them, of any number of gates.
  """
  runs = _all_runs(model) if bits is None else _runs(model, bits)
  networks = (
    num_networks(model.space) if bits is None else len(np.unique(canonical(model, bits), axis=0))
  )
  x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), x)
  shapes = parts(model, x)
  of = type(model).__name__
  flops = count_flops(lambda v, x: embed(model, {'params': v}, x), shapes.embed, x, of=of)
  for i, count in enumerate(runs):
    run = lambda v, h, i=i: update(model, {'params': v}, i, h)
    flops += count * count_flops(run, shapes.sites[i], shapes.streams[i], of=of)
  last = lambda v, h: readout(model, {'params': v}, h)
  flops += networks * count_flops(last, shapes.readout, shapes.streams[-1], of=of)
  return Walk(tuple(runs), networks, flops)


def _all_runs(model: Any) -> list[int]:
  """Returns how often each site runs for all structures: once for each prefix with it on, of which
  a site with k inner gates makes 2^k, and one more where it may be off."""
  prefixes, runs = 1, []
  for site in sites_of(model):
    on = prefixes * 2**site.num_inner
    runs.append(on)
    prefixes = on + prefixes * site.has_residual
  return runs


def _runs(model: Any, bits: Bool[np.ndarray, 'S n']) -> list[int]:
  bits, runs = canonical(model, bits), []
  for site in sites_of(model):
    on = bits[bits[:, site.start]] if site.has_residual else bits
    runs.append(_distinct(on[:, : site.gates.stop]))
  return runs


def _distinct(prefixes: Int[np.ndarray, 'S k'] | Bool[np.ndarray, 'S k']) -> int:
  return len(np.unique(prefixes, axis=0)) if prefixes.size else min(len(prefixes), 1)
