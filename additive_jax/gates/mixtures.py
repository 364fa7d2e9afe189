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

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from additive_jax.errors import UserError
from additive_jax.gates.layers import LayerPair, check_layers, joins, units_of
from additive_jax.gates.mixed_layers import mixed_layers
from additive_jax.gates.shares import sum_of_units

Span = tuple[int, int]


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
  mix = functools.partial(_mix_spans, num_chunks, activation)
  count = len(spans(num_chunks))
  run = lambda units, x, weights: mixed_layers(mix, x, units, weights, num_chunks, count)
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

  Costs the matmuls of the dense layer and k·m activations, or from k = m/2 on the m(m+1)/2 of
  `span_mixture`.

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
  if 2 * k >= num_chunks:
    return span_mixture(x, layers, (weights[..., None] * span_weights(gates)).sum(-2), activation)
  check_layers(x, layers)
  mix = functools.partial(_mix_structures, activation)
  table = itertools.chain(*joins([gates[..., j] for j in range(num_chunks - 1)]))
  joined = jnp.stack([jnp.broadcast_to(entry, gates.shape[:-1]) for entry in table], axis=-1)
  joined = joined.reshape(*gates.shape[:-1], num_chunks, num_chunks).astype(x.dtype)

  def run(units, x, joined, weights):
    return mixed_layers(mix, x, units, (joined, weights), num_chunks, k * num_chunks)

  y = sum_of_units(run, *units_of(layers), x, joined, weights)
  return layers.second.add_bias(y, weights.sum(-1)[..., None])


def _chunks_of(num_spans: int) -> int:
  """Returns m, which has m(m+1)/2 spans."""
  num_chunks = round((2 * num_spans) ** 0.5 - 0.5)
  if num_chunks < 1 or num_chunks * (num_chunks + 1) != 2 * num_spans:
    raise UserError(f'{num_spans} weights of spans: expected m(m+1)/2 for some m')
  return num_chunks


def _activated(activation, sums):
  """Returns the hidden values of partial products, a tuple of one array, or two of a gated unit."""
  return activation(sums[0]) if len(sums) == 1 else activation(sums[0]) * sums[1]


def _mix_spans(num_chunks, activation, partial, weights):
  """Returns `H_j = Σ_{[a,b] ∋ j} p_[a,b] h_[a,b]` for every chunk j, [m, rows, H], of weights
  [spans, rows].

  Sums over the chunks of a span, and over the spans of a chunk, are products with one small matrix
  of 0 and 1.
  """
  member = np.array([[a <= j <= b for j in range(num_chunks)] for a, b in spans(num_chunks)])
  member = jnp.asarray(member, partial[0].dtype)
  rows, hidden = partial[0].shape[1:]
  sums = [(member @ part.reshape(num_chunks, -1)).reshape(-1, rows, hidden) for part in partial]
  weighted = weights[..., None].astype(sums[0].dtype) * _activated(activation, sums)
  return (member.T @ weighted.reshape(len(member), -1)).reshape(num_chunks, rows, hidden)


def _mix_structures(activation, partial, values):
  """Returns `H_j = Σ_i w_i act(Σ_l M_i[j,l] P_l)` for every chunk j, [m, rows, H].

  Args:
    values: M of k structures, see `joins`, [k, m, m, rows], and their weights [k, rows].
  """
  joined, weights = values
  return _weighted(
    _activated(activation, [_joined_sums(part, joined) for part in partial]), weights
  )


# The two functions below are written out with their gradients because XLA on CPU otherwise puts a
# sum over chunks and the activation of it into one loop, which computes the sum many times over
# (three to ten times as slow). The loop over chunks keeps them apart.


@jax.custom_vjp
def _joined_sums(partial, joined):
  """Returns `Σ_l M[j,l] P_l` for k structures, [m, k, rows, H]."""
  rows = jnp.moveaxis(joined, 1, 0)  # [m, k, m, rows]
  return jax.lax.map(lambda row: sum(row[:, i, :, None] * p for i, p in enumerate(partial)), rows)


def _joined_sums_backward(joined, slope):
  """The gradient with respect to the partial products; M is symmetric."""
  rows = jnp.moveaxis(joined, 1, 0)

  def of_chunk(row):
    terms = (row[i, j, :, None] * slope[j, i] for i in range(len(row)) for j in range(len(slope)))
    return functools.reduce(jnp.add, terms)

  return jax.lax.map(of_chunk, rows), jnp.zeros_like(joined)


_joined_sums.defvjp(
  lambda partial, joined: (_joined_sums(partial, joined), joined), _joined_sums_backward
)


@jax.custom_vjp
def _weighted(hidden, weights):
  """Returns `Σ_i w_i h_i`, of hidden values [m, k, rows, H] and weights [k, rows]."""
  return functools.reduce(jnp.add, (w[:, None] * hidden[:, i] for i, w in enumerate(weights)))


def _weighted_backward(kept, slope):
  hidden, weights = kept
  products = (hidden * slope[:, None]) @ jnp.ones(hidden.shape[-1], hidden.dtype)
  of_hidden = weights[None, ..., None] * slope[:, None]
  return of_hidden.astype(hidden.dtype), products.sum(0).astype(weights.dtype)


_weighted.defvjp(
  lambda hidden, weights: (_weighted(hidden, weights), (hidden, weights)), _weighted_backward
)
