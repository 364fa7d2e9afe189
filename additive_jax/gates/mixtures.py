"""Mixtures of the 2^(m−1) structures of one sub-activation layer, token by token.

A structure of m chunks is a way to cut them into groups of neighbours (see `gates.sub_activation`).
Whatever the structures, output chunk j needs nothing but the hidden values of the m(m+1)/2 *spans*
[a, b] of chunks: `h_[a,b] = act(P_a + … + P_b)`. So a weighted sum over any number of structures is
a weighted sum over spans,

  Σ_s w_s f_s(x) = ( Σ_{[a,b] ∋ j} p_[a,b] h_[a,b] B_j )_j,   p_[a,b] = Σ_{s that has [a,b]} w_s,

with one dense first layer, one dense second layer and m(m+1)/2 activations: nothing is dispatched,
and no token is dropped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from additive_jax.errors import UserError
from additive_jax.gates.layers import (
  LayerPair,
  check_layers,
  chunked,
  joins,
  mixed_hidden,
  units_of,
)
from additive_jax.gates.shares import sum_of_units

Span = tuple[int, int]

# Hidden values of all spans that are computed together: about what a core's cache holds.
BLOCK_BYTES = {'cpu': 2**21}
DEFAULT_BLOCK_BYTES = 2**28


def spans(num_chunks: int) -> list[Span]:
  """Returns the m(m+1)/2 spans (a, b) of chunks a to b inclusive, ordered by a and then b.

  >>> spans(2)
  [(0, 0), (0, 1), (1, 1)]
  """
  return list(itertools.combinations_with_replacement(range(num_chunks), 2))


def span_weights(gates: Float[Array, '... joins']) -> Float[Array, '... spans']:
  """Returns `p([a, b]) = (1 − g_{a−1}) · g_a … g_{b−1} · (1 − g_b)`; gate k joins chunks k and k+1.

  >>> dict(zip(spans(3), span_weights(jnp.array([1.0, 0.0])).tolist()))
  {(0, 0): 0.0, (0, 1): 1.0, (0, 2): 0.0, (1, 1): 0.0, (1, 2): 0.0, (2, 2): 1.0}

  Args:
    gates: floats [..., m − 1]. Bits 0 and 1 give 1 for the spans that are groups of that structure;
      independent probabilities of being on give the probability that each span is one.

  Returns:
    [..., m(m+1)/2], in the order of `spans`.
  """
  num_chunks = gates.shape[-1] + 1
  one = jnp.ones(gates.shape[:-1], gates.dtype)
  cut = [one, *(1 - gates[..., k] for k in range(num_chunks - 1)), one]  # before each chunk
  weights = []
  for a in range(num_chunks):
    joined = cut[a]
    for b in range(a, num_chunks):
      weights.append(joined * cut[b + 1])
      if b < num_chunks - 1:
        joined = joined * gates[..., b]
  return jnp.stack(weights, axis=-1)


def span_mixture(
  x: Float[Array, '*batch D'],
  layers: LayerPair,
  weights: Float[Array, '*batch spans'],
  activation: Callable[[Array], Array],
) -> Float[Array, '*batch E']:
  """Returns `Σ_s w_s f_s(x)` over structures s of `gates.sub_activation`, given the weights of the
  spans.

  Costs the matmuls of the dense layer and m(m+1)/2 activations, however many structures there are.

  >>> from additive_jax.gates.layers import Layer
  >>> layers = LayerPair(Layer(jnp.eye(2)), Layer(jnp.eye(2)))
  >>> weights = span_weights(jnp.array([0.0]))  # of the structure whose one gate is off
  >>> span_mixture(jnp.array([1.0, 2.0]), layers, weights, jax.nn.relu).tolist()
  [1.0, 2.0]

  Args:
    x: [..., D].
    layers, activation: as in `sub_activation`.
    weights: of every span, [..., m(m+1)/2] with the leading axes of x; see `span_weights`.

  Returns:
    y [..., E]; the second bias counts with the sum of the structures' weights.

  Raises:
    UserError: when there is no m with as many spans, or the shapes do not fit.
  """
  num_chunks = _chunks_of(weights.shape[-1])
  check_layers(x, layers)

  def run(units, x, weights):
    first, activate, second = chunked(x, units, num_chunks, activation)
    hidden = _mix_spans([first(j, j + 1) for j in range(num_chunks)], weights, activate)
    return _side_by_side(hidden, second)

  first = [i for i, (a, _) in enumerate(spans(num_chunks)) if a == 0]
  total = sum((weights[..., i] for i in first[1:]), weights[..., first[0]])
  y = sum_of_units(run, *units_of(layers), x, weights)
  return layers.second.add_bias(y, total[..., None])


def structure_mixture(
  x: Float[Array, '*batch D'],
  layers: LayerPair,
  structures: Bool[Array, '*batch k joins'],
  weights: Float[Array, '*batch k'],
  activation: Callable[[Array], Array],
) -> Float[Array, '*batch E']:
  """Returns `Σ_i w_i f_{s_i}(x)` over k structures of each token, which share the first layer's
  partial products and, because it is linear, the second layer.

  Costs the matmuls of the dense layer and k·m or m(m+1)/2 activations, whichever is less.

  >>> from additive_jax.gates.layers import Layer
  >>> layers = LayerPair(Layer(jnp.eye(2)), Layer(jnp.eye(2)))
  >>> both, half = jnp.array([[False], [True]]), jnp.array([0.5, 0.5])
  >>> structure_mixture(jnp.array([1.0, 2.0]), layers, both, half, jax.nn.relu).tolist()
  [1.0, 2.0]

  Args:
    x, layers, activation: see `span_mixture`.
    structures: s, bool [..., k, m − 1].
    weights: w, [..., k].

  Returns:
    y [..., E].
  """
  k, num_chunks = structures.shape[-2], structures.shape[-1] + 1
  gates = structures.astype(weights.dtype)
  if 2 * k >= num_chunks + 1:
    return span_mixture(x, layers, (weights[..., None] * span_weights(gates)).sum(-2), activation)
  check_layers(x, layers)

  def run(units, x, gates, weights):
    first, activate, second = chunked(x, units, num_chunks, activation)

    @jax.checkpoint
    def mix(partial, gates, weights):
      hidden = [0.0] * num_chunks
      for i in range(k):
        inner = [gates[..., i, j] for j in range(num_chunks - 1)]
        for j, row in enumerate(joins(inner)):
          hidden[j] += weights[..., i, None] * mixed_hidden(activate, row, partial)
      return hidden

    return _side_by_side(mix([first(j, j + 1) for j in range(num_chunks)], gates, weights), second)

  y = sum_of_units(run, *units_of(layers), x, gates, weights)
  return layers.second.add_bias(y, weights.sum(-1)[..., None])


def _chunks_of(num_spans: int) -> int:
  """Returns m, which has m(m+1)/2 spans."""
  num_chunks = round((2 * num_spans) ** 0.5 - 0.5)
  if num_chunks < 1 or num_chunks * (num_chunks + 1) != 2 * num_spans:
    raise UserError(f'{num_spans} weights of spans: expected m(m+1)/2 for some m')
  return num_chunks


def _mix_spans(partial, weights, activate):
  """Returns `H_j = Σ_{[a,b] ∋ j} p_[a,b] h_[a,b]` for every chunk j.

  Sums over the chunks of a span, and over the spans of a chunk, are products with one small matrix
  of 0 and 1. Tokens go in blocks whose hidden values of all spans stay in the cache, and those are
  computed again in the backward pass, so that only the partial products are kept.
  """
  num_chunks, shape = len(partial), partial[0][0].shape
  member = np.array([[a <= j <= b for j in range(num_chunks)] for a, b in spans(num_chunks)])
  member = jnp.asarray(member, weights.dtype)
  tokens, hidden = math.prod(shape[:-1]), shape[-1]
  budget = BLOCK_BYTES.get(jax.default_backend(), DEFAULT_BLOCK_BYTES)
  rows = budget // (len(member) * hidden * weights.dtype.itemsize)
  rows = min(max(8, 1 << max(rows, 1).bit_length() - 1), tokens)
  blocks = -(-tokens // rows)

  def cut(value):
    """Returns [..., F] as [blocks, rows, F]."""
    value = value.reshape(tokens, -1)
    return jnp.pad(value, ((0, blocks * rows - tokens), (0, 0))).reshape(blocks, rows, -1)

  @jax.checkpoint
  def mix(block):
    sums, weights = block
    sums = [(member @ part.reshape(num_chunks, -1)).reshape(-1, rows, hidden) for part in sums]
    weighted = weights.T[..., None] * activate(sums)
    return (member.T @ weighted.reshape(len(member), -1)).reshape(num_chunks, rows, hidden)

  stacked = [jnp.stack(list(map(cut, parts)), axis=1) for parts in zip(*partial, strict=True)]
  mixed = jax.lax.map(mix, (stacked, cut(weights)))
  of_chunk = lambda j: mixed[:, j].reshape(blocks * rows, hidden)[:tokens].reshape(shape)
  return list(map(of_chunk, range(num_chunks)))


def _side_by_side(hidden, second):
  """Returns the second layer of the hidden values of every chunk, without its bias."""
  return jnp.concatenate([second(h, j, j + 1) for j, h in enumerate(hidden)], axis=-1)
