"""The self-attention branch, with residual and lane gates: its heads have keys and values of their
own, or share those of their group."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from additive_jax.gates.layers import Layer
from additive_jax.gates.shares import sum_of_units
from additive_jax.gates.sums import GateValue, lane
from additive_jax.models.dropout import dropping
from additive_jax.models.feed_forward import Linear, add_share, in_lanes
from additive_jax.models.kinds import BRANCH, LANE, RESIDUAL, gate_names
from additive_jax.models.norms import Norm, Scale, post_norm, rms
from additive_jax.models.rotary import Rotary, rotate
from additive_jax.models.surrounding import in_branch_dtype


@dataclasses.dataclass(frozen=True)
class Grouped:
  """Heads of which several share keys and values. Source: Ainslie et al. 2023 (arXiv:2305.13245).

  Attributes:
    num_groups: K; N/K heads share keys and values.
    head_size: U, which need not be D/N.
    qkv_bias, out_bias: whether these layers have biases.
    qk_norm: whether queries and keys of each head are normalised, by RMSNorms of their own.
  """

  num_groups: int
  head_size: int
  qkv_bias: bool = False
  out_bias: bool = False
  qk_norm: bool = False


class Attention(nn.Module):
  """`h + attention(norm(h))`, or `norm(h + attention(h))`, from [B, T, D] to the same shape.

  Attributes:
    num_heads: N heads of D/N units each.
    kinds: which gates it has: 'residual' and 'lane', or, where the norm comes after, 'branch'; see
      `models.kinds`.
    num_lanes: P, of the lane gate; the stream is then [B, P, T, D], and lane p owns N/P heads, or
      K/P groups of heads.
    causal: whether token t attends to the tokens up to t alone.
    rope: whether queries and keys are rotated by their positions, and how.
    norm: its kind and place.
    grouped: how heads share keys and values; None for heads of their own, in one layer `qkv`.
    window: how many tokens, itself included, a token sees at most; 0 for no limit.
    dropout: probability that training drops a number of the branch; 0 with a lane gate.

  A side (see `models.WithSide`) from `models.token_inputs` says which tokens see each other.

  >>> site, h = Attention(num_heads=2), jnp.ones((1, 5, 4))
  >>> pool = jax.eval_shape(site.init, jax.random.key(0), h)['params']
  >>> pool['qkv']['kernel'].shape, pool['out']['kernel'].shape
  ((4, 3, 2, 2), (2, 2, 4))
  """

  num_heads: int
  kinds: tuple[str, ...] = (RESIDUAL,)
  num_lanes: int = 1
  causal: bool = False
  rope: bool | Rotary = False
  norm: Norm = Norm()
  grouped: Grouped | None = None
  window: int = 0
  dropout: float = 0.0

  casts: ClassVar[bool] = True

  @property
  def gates(self) -> tuple[str, ...]:
    return gate_names(self.kinds, 1)

  @nn.compact
  def __call__(
    self,
    h: Float[Array, 'B *lanes T D'],
    gates: Sequence[GateValue] = (),
    side: PyTree | None = None,
  ) -> Float[Array, 'B *lanes T D']:
    norm = self.norm.module('norm')
    x = h if self.norm.after else norm(h)
    x, layers, scales = in_branch_dtype((x, *self._layers(h.shape[-1])))
    side, drop = side or {}, dropping(self.dropout)
    mask = visible(h.shape[-2], self.causal, self.window, side.get('segments'))

    def branch(x: Array, layers: AttentionLayers | GroupedLayers) -> Array:
      scale = None if scales is None else (*scales, self.norm.epsilon)
      positions = side.get('positions')
      z = attention(x, layers, mask=mask, positions=positions, rope=self.rope, scales=scale)
      return z if drop is None else drop(z)

    if self.norm.after:
      gate = gates[0] if BRANCH in self.kinds and gates else True
      return post_norm(h, lambda h: branch(in_branch_dtype(h), layers), norm, gate)
    if LANE not in self.kinds:
      return h + branch(x, layers)
    z = jax.vmap(branch, in_axes=(1, 0), out_axes=1)(x, layers_of_lanes(layers, self.num_lanes))
    reduce = gates[0] if gates else True
    return lane(h, add_share(z, layers.out.bias, self.num_lanes), reduce, axis=1)

  def _layers(
    self, width: int
  ) -> tuple[AttentionLayers | GroupedLayers, tuple[Array, Array] | None]:
    """Returns the parameters, and the scales of the norms of queries and keys."""
    if self.grouped is None:
      return attention_layers(width, self.num_heads, width // self.num_heads), None
    layers = grouped_layers(width, self.num_heads, self.grouped)
    if not self.grouped.qk_norm:
      return layers, None
    size = self.grouped.head_size
    return layers, (Scale(size, name='q_norm')(), Scale(size, name='k_norm')())


class AttentionLayers(NamedTuple):
  """The parameters of attention with N heads of U units.

  Attributes:
    qkv: to queries, keys and values, kernel [D, 3, N, U] and bias [3, N, U].
    out: from the heads, kernel [N, U, D] and bias [D] or None.
  """

  qkv: Layer
  out: Layer


def attention_layers(
  width: int,
  heads: int,
  size: int,
  *,
  copies: tuple[int, ...] = (),
  prefix: str = '',
  parts: int = 3,
) -> AttentionLayers:
  """Makes the layers of attention, as submodules `qkv` and `out` of a compact module.

  Args:
    width, heads, size: D, N and U.
    copies: () or the number of modules, a leading axis of all arrays.
    prefix: of the submodules' names.
    parts: 3, or 1 where `qkv` makes queries alone.
  """
  lead, shape, experts = len(copies), (*copies, parts, heads, size), ('expert',) * len(copies)
  axes = (*experts, 'embed', None, 'heads', None)
  qkv = Linear((*copies, width, *shape[lead:]), lead, shape, axes, name=f'{prefix}qkv')
  shape, axes = (*copies, heads, size, width), (*experts, 'heads', None, 'embed')
  out = Linear(shape, (lead, lead + 1), (*copies, width), axes, name=f'{prefix}out')
  return AttentionLayers(qkv(), out())


class GroupedLayers(NamedTuple):
  """The parameters of attention with K groups of G heads of U units.

  Attributes:
    q: to queries, kernel [D, K, G, U] and bias [K, G, U] or None.
    kv: to keys and values, kernel [D, 2, K, U] and bias [2, K, U] or None.
    out: from the heads, kernel [K, G, U, D] and bias [D] or None.
  """

  q: Layer
  kv: Layer
  out: Layer


def grouped_layers(width: int, heads: int, grouped: Grouped) -> GroupedLayers:
  """Makes the layers of attention in groups, as submodules `q`, `kv` and `out` of a compact module.

  Args:
    width, heads: D and N.
    grouped: the groups.
  """
  groups, size = grouped.num_groups, grouped.head_size
  of_group = (groups, heads // groups, size)
  bias = of_group if grouped.qkv_bias else None
  q = Linear((width, *of_group), 0, bias, ('embed', 'heads', None, None), name='q')
  shape, bias = (2, groups, size), (2, groups, size) if grouped.qkv_bias else None
  kv = Linear((width, *shape), 0, bias, ('embed', None, 'heads', None), name='kv')
  axes, bias = ('heads', None, None, 'embed'), (width,) if grouped.out_bias else None
  out = Linear((*of_group, width), (0, 1, 2), bias, axes, name='out')
  return GroupedLayers(q(), kv(), out())


def layers_of_lanes(
  layers: AttentionLayers | GroupedLayers, lanes: int
) -> AttentionLayers | GroupedLayers:
  """Splits the heads, or the groups of heads, over lanes: arrays with a leading axis of lanes,
  without the output bias, which lanes share."""

  def split(layer: Layer, axis: int) -> Layer:
    bias = None if layer.bias is None else in_lanes(layer.bias, axis - 1, lanes)
    return Layer(in_lanes(layer.kernel, axis, lanes), bias)

  out = Layer(in_lanes(layers.out.kernel, 0, lanes))
  if isinstance(layers, GroupedLayers):
    return GroupedLayers(split(layers.q, 1), split(layers.kv, 2), out)
  return AttentionLayers(split(layers.qkv, 2), out)


def attention(
  x: Float[Array, 'B T D'],
  layers: AttentionLayers | GroupedLayers,
  *,
  mask: Bool[Array, '#B T T'] | None = None,
  positions: Int[Array, 'B T'] | None = None,
  rope: bool | Rotary = False,
  scales: tuple[Float[Array, 'U'], Float[Array, 'U'], float] | None = None,
) -> Float[Array, 'B T D']:
  """Returns `W_o softmax(q kᵀ/√U) v` with q, k, v linear in x.

  Args:
    x: the normalised stream.
    layers: the parameters.
    mask: which keys each query sees; None is all.
    positions: of the tokens, for rotations; None is 0 to T − 1.
    rope: whether and how queries and keys are rotated by their positions, see `rotate`.
    scales: of the norms of queries and keys, and their epsilon; None is no norm.
  """
  rotary = rope if isinstance(rope, Rotary) else None
  grouped, epsilon = isinstance(layers, GroupedLayers), scales[2] if scales else 0.0

  def project(x, kernel, bias):
    # Kernels enter as factors of `@` alone, so that `compress.noise` can put others in their place.
    y = (x @ kernel.reshape(x.shape[-1], -1)).reshape(*x.shape[:-1], *kernel.shape[1:])
    return y if bias is None else y + bias

  def run(heads, x, mask, positions, scales):
    *inputs, out = heads
    if grouped:
      q, (k, v) = project(x, *inputs[0]), jnp.moveaxis(project(x, *inputs[1]), 2, 0)
    else:
      q, k, v = jnp.moveaxis(project(x, *inputs[0]), 2, 0)
    if scales is not None:
      q, k = rms(q, scales[0], epsilon), rms(k, scales[1], epsilon)
    if rope:
      q, k = rotate(q, positions, rotary), rotate(k, positions, rotary)
    z = attend(q, k, v, mask)
    return z.reshape(*x.shape[:-1], -1) @ out.reshape(-1, x.shape[-1])

  heads, axes = _heads_of(layers)
  of_heads = scales[:2] if scales else None
  return layers.out.add_bias(sum_of_units(run, heads, axes, x, mask, positions, of_heads))


def _heads_of(layers: AttentionLayers | GroupedLayers) -> tuple[PyTree, PyTree]:
  """Returns the parameters of heads or groups, and of each the axis that counts these."""

  def axes(layer: Layer, axis: int) -> PyTree:
    return jax.tree.map(lambda _: axis, layer)

  if isinstance(layers, GroupedLayers):
    return (layers.q, layers.kv, layers.out.kernel), (axes(layers.q, -3), axes(layers.kv, -2), -4)
  return (layers.qkv, layers.out.kernel), (axes(layers.qkv, -2), -3)


def attend(
  q: Float[Array, 'B Q N *G U'],
  k: Float[Array, 'B T N U'],
  v: Float[Array, 'B T N U'],
  mask: Bool[Array, '#B Q T'] | None = None,
) -> Float[Array, 'B Q N *G U']:
  """Returns the values' mean for each query, weighted by the softmax of its products with the keys
  that the mask lets it see. Queries with an axis more share keys and values along it.

  >>> q, v = jnp.zeros((1, 2, 1, 1)), jnp.array([0.0, 4.0]).reshape(1, 2, 1, 1)
  >>> attend(q, q, v).ravel().tolist(), attend(q, q, v, causal_mask(2)).ravel().tolist()
  ([2.0, 2.0], [0.0, 2.0])
  """
  g = 'g' * (q.ndim - k.ndim)
  scores = jnp.einsum(f'bqn{g}u,bknu->bn{g}qk', q * q.shape[-1] ** -0.5, k)
  if mask is not None:
    mask = jnp.expand_dims(mask, tuple(range(1, scores.ndim - 2)))
    scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
  weights = jax.nn.softmax(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)))
  return jnp.einsum(f'bn{g}qk,bknu->bqn{g}u', weights.astype(v.dtype), v)


def causal_mask(tokens: int, window: int = 0) -> Bool[Array, '1 T T']:
  """Returns the mask by which token t sees the tokens up to t alone, of these the last `window` if
  that is not 0.

  >>> causal_mask(2).astype(int).tolist()
  [[[1, 0], [1, 1]]]
  """
  mask = jnp.tril(jnp.ones((1, tokens, tokens), bool))
  return mask & ~jnp.tril(mask, -window) if window else mask


def visible(
  tokens: int, causal: bool, window: int, segments: Int[Array, 'B T'] | None
) -> Bool[Array, '#B T T'] | None:
  """Returns which tokens each token sees, or None for all.

  >>> visible(3, True, 0, jnp.array([[1, 1, 2]])).astype(int).tolist()
  [[[1, 0, 0], [1, 1, 0], [0, 0, 1]]]

  Args:
    tokens: T.
    causal, window: see `Attention`.
    segments: which document each token belongs to, 0 for padding; None is one document.
  """
  mask = causal_mask(tokens, window) if causal else None
  if segments is None:
    return mask
  same = segments[:, :, None] == segments[:, None, :]
  return same if mask is None else mask & same
