"""What each site changes in the stream of all-on: one forward pass."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from additive_jax.batches import num_examples, rows
from additive_jax.models.additive import embed, gate_names, sites_of, update
from additive_jax.models.contract import check_pool
from additive_jax.models.side import stream_of
from additive_jax.search.problem import layers


def stream_changes(
  model: nn.Module, variables: PyTree, x: Any, kind: str, *, batch_size: int = 64
) -> Float[np.ndarray, ' n']:
  """Returns what each site does to the stream, for its residual gate; infinity for other gates.

  With h [B, ..., D] before a site and h' after it, means over examples and positions of

    cosine        1 − cos(h, h'), over the last axis;
    cosine_layer  the same of a whole layer: the sites whose names begin alike share its value;
    blockwise     ‖h' − h‖² / ‖h'‖²: the error of a site that is off, relative to the stream.

  A site that changes the stream's shape cannot be off and has no residual gate.

  >>> model, x = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3), np.ones((5, 6), 'f')
  >>> stream_changes(model, model.init(jax.random.key(0), x), x, 'cosine').shape
  (2,)

  Args:
    x: inputs [N, ...].
    kind: one of those.
    batch_size: examples of a pass.
  """
  count = num_examples(x)
  size = min(batch_size, count)
  check_pool(model, variables, rows(x, slice(size)))
  total = np.zeros(len(gate_names(model)))
  for start in range(0, count, size):
    batch = rows(x, slice(start, start + size))
    changes = _changes(model, variables, batch, kind)
    total += num_examples(batch) * np.array([changes.get(n, np.inf) for n in gate_names(model)])
  return total / count


@functools.partial(jax.jit, static_argnums=(0, 3))
def _changes(model, variables, x, kind):
  sites = sites_of(model)
  names, groups = gate_names(model), [site.label for site in sites]
  if kind == 'cosine_layer':
    groups = layers(tuple(groups))
  h, changes, start = embed(model, variables, x), {}, 0
  before = stream_of(h)
  for i in range(len(sites)):
    h = update(model, variables, i, h)
    if i + 1 < len(sites) and groups[i + 1] == groups[i]:
      continue
    after = stream_of(h)
    hosts = [one for one in sites[start : i + 1] if one.has_residual]
    if before.shape == after.shape:
      change = (_distance if kind == 'blockwise' else _angle)(before, after)
      changes |= {names[one.start]: change for one in hosts}
    before, start = after, i + 1
  return changes


def _angle(before: Float[Array, 'B ... D'], after: Float[Array, 'B ... D']) -> Float[Array, '']:
  before, after = before.astype(jnp.float32), after.astype(jnp.float32)
  lengths = jnp.linalg.norm(before, axis=-1) * jnp.linalg.norm(after, axis=-1)
  return jnp.mean(1 - (before * after).sum(-1) / jnp.maximum(lengths, 1e-12))


def _distance(before: Float[Array, 'B ... D'], after: Float[Array, 'B ... D']) -> Float[Array, '']:
  before, after = before.astype(jnp.float32), after.astype(jnp.float32)
  ratio = jnp.square(after - before).sum(-1) / jnp.maximum(jnp.square(after).sum(-1), 1e-12)
  return jnp.mean(ratio)
