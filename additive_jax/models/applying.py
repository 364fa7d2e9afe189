"""How Flax's `apply` is called for a part of a network, and for a whole one: in the mode of now."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import PRNGKeyArray, PyTree

from additive_jax.models.batch_norm import run_of_batch
from additive_jax.models.surrounding import Part, run_part


def apply_part(
  model: nn.Module,
  variables: PyTree,
  part: Part,
  method: Callable[..., Any],
  stream: Any,
  *others: Any,
  casts: bool = True,
  rngs: Mapping[str, PRNGKeyArray] | None = None,
  **flax: Any,
) -> Any:
  """Returns what a part of the network gives, in the mode of now.

  Args:
    method: of the module, the stream and the others.
    casts: see `surrounding.run_part`.
    rngs, flax: as for Flax's `apply`.
  """

  def run(variables: PyTree, stream: Any, of_mode: Mapping[str, PRNGKeyArray]) -> Any:
    keys = {**of_mode, **(rngs or {})}
    options = {'method': method, 'rngs': keys or None, **flax}
    mutable = options.pop('mutable', False)
    apply = functools.partial(model.apply, variables, stream, *others, **options)
    return run_of_batch(apply, mutable)

  return run_part(model, part, variables, run, stream, casts=casts)


def apply_whole(
  apply: Callable[..., Any],
  kwargs: Mapping[str, Any],
  variables: PyTree,
  args: tuple[Any, ...],
  of_mode: Mapping[str, PRNGKeyArray],
) -> Any:
  """Returns what Flax's `apply` does, with the random numbers of a mode beside those given."""
  keys = kwargs.get('rngs')
  if of_mode and not isinstance(keys, Mapping | None):
    keys = {'params': keys}
  rngs = {'rngs': {**of_mode, **(keys or {})}} if of_mode else {}
  options = {**kwargs, **rngs}
  mutable = options.pop('mutable', False)
  return run_of_batch(functools.partial(apply, variables, *args, **options), mutable)
