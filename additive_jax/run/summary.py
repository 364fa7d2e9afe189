"""What losses and metrics over a vocabulary need of logits, found without all of them at once.

A cross-entropy needs two numbers of the logits of a token, log Σ exp and the logit of its label,
and an accuracy the largest of the others. They are found by one pass over pieces of the vocabulary,
which stay in a core's cache, and no more logits than those of a piece are held. Source: the running
maximum of an online softmax, Milakov & Gimelshein 2018 (arXiv:1805.02867).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from additive_jax.models.last_layer import LastLayer

PIECE = 4096  # logits of a token at a time


class Summary(NamedTuple):
  """What is kept of the logits of each token.

  Attributes:
    log_sum: log Σ exp of all.
    label: that of the label.
    other: the largest of the others.
  """

  log_sum: Float[Array, 'B ...']
  label: Float[Array, 'B ...']
  other: Float[Array, 'B ...']

  @property
  def shape(self) -> tuple[int, ...]:
    """As of the logits, but for how many there are."""
    return (*self.label.shape, 0)

  @property
  def losses(self) -> Float[Array, 'B ...']:
    """The cross-entropy of each token, in nats."""
    return self.log_sum - self.label

  @property
  def right(self) -> Float[Array, 'B ...']:
    """1 where the label's logit is larger than every other."""
    return (self.label > self.other).astype(self.label.dtype)


def summarised(last: LastLayer, labels: Int[Array, 'B ...'], piece: int = PIECE) -> Summary:
  """Returns the summary of the logits of a last layer.

  >>> last = LastLayer(jnp.eye(2), jnp.array([[0.0, 1.0, 3.0], [2.0, 0.0, 0.0]]))
  >>> found = summarised(last, jnp.array([2, 1]), piece=2)
  >>> print(found.losses.round(1), found.right)
  [0.2 2.2] [1. 0.]

  Args:
    last: of float32, or what is computed in.
    labels: which logit is the label's, of each token.
    piece: how many logits are computed at a time.
  """
  total = last.num_logits
  piece = min(piece, total)
  x = last.x

  def step(i: Int[Array, ''], carry: Summary) -> Summary:
    # The last piece starts early instead of being padded; what it repeats does not count.
    start = jnp.minimum(i * piece, total - piece)
    kernel = jax.lax.dynamic_slice_in_dim(last.kernel, start, piece, 0 if last.tied else 1)
    logits = jnp.einsum('...d,vd->...v' if last.tied else '...d,dv->...v', x, kernel)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if last.bias is not None:
      logits += jax.lax.dynamic_slice_in_dim(last.bias, start, piece)
    place = start + jnp.arange(piece)
    is_label = place == labels[..., None]
    fresh = place >= i * piece
    label = carry.label + jnp.where(is_label & fresh, logits, 0).sum(-1)
    known = jnp.where(fresh, logits, -jnp.inf)
    log_sum = jnp.logaddexp(carry.log_sum, jax.nn.logsumexp(known, axis=-1))
    other = jnp.maximum(carry.other, jnp.where(is_label, -jnp.inf, known).max(-1))
    return Summary(log_sum, label, other)

  dtype = jnp.promote_types(jnp.result_type(x, last.kernel), jnp.float32)
  low = jnp.full(labels.shape, -jnp.inf, dtype)
  first = Summary(low, jnp.zeros(labels.shape, dtype), low)
  return jax.lax.fori_loop(0, -(-total // piece), step, first)
