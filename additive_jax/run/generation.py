"""How a causal language model goes on with a text."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Integer, PyTree

from additive_jax.gates.structure import StructureLike, bits_of
from additive_jax.models.additive import canonical, gate_names
from additive_jax.models.contract import check_pool
from additive_jax.run.ways import conditional


def continued(
  model: nn.Module,
  variables: PyTree,
  tokens: Integer[np.ndarray, 'B T'],
  structure: StructureLike,
  count: int,
) -> Integer[np.ndarray, 'B count']:
  """Returns the tokens that a structure goes on with, each the most likely one.

  Every token takes a pass over all T + count positions, which suits a look at a few, not serving.
  One program does for all structures.

  >>> sizes = {'width': 8, 'num_heads': 2, 'hidden': 16, 'num_classes': 256, 'num_tokens': 256}
  >>> model, x = aj.models.Transformer(1, **sizes, causal=True), np.zeros((2, 3), np.int32)
  >>> continued(model, model.init(jax.random.key(0), x), x, '11', 4).shape
  (2, 4)

  Args:
    model: of tokens, each position of which sees none after it.
    variables: `{'params': pool}`.
    tokens: that are gone on from, T at least 1.
    count: how many follow.
  """
  check_pool(model, variables, tokens)
  bits = canonical(model, bits_of([structure], len(gate_names(model))))[0]
  start = np.pad(np.asarray(tokens, np.int32), ((0, 0), (0, count)))
  return np.asarray(_continued(model, variables, start, tokens.shape[1], bits))[:, -count:]


@functools.partial(jax.jit, static_argnums=0)
def _continued(model, variables, tokens, length, bits: Bool[Any, ' n']):
  def step(place, tokens):
    logits = conditional(model, variables, tokens, bits)
    last = jax.lax.dynamic_index_in_dim(logits, place - 1, 1, keepdims=False)
    following = last.argmax(-1).astype(tokens.dtype)
    return jax.lax.dynamic_update_index_in_dim(tokens, following, place, 1)

  return jax.lax.fori_loop(length, tokens.shape[1], step, jnp.asarray(tokens))
