"""What the routers of a trained network do with examples."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int, PyTree, Shaped

from additive_jax.batches import num_examples, rows
from additive_jax.parallel import processes
from additive_jax.run import ways
from additive_jax.run.objectives import expected_of, scores_of

BATCH = 32  # examples whose choices are looked at together


@dataclasses.dataclass(frozen=True)
class Inspection:
  """What a trained network with routers does with N examples.

  Attributes:
    loss, accuracy: means over the examples.
    facts: by site, means over the whole batches.
    chosen: numbers of what each token chose at each site; None where nothing is chosen.
    on: which tokens were computed; None for all.
  """

  loss: float
  accuracy: float
  facts: dict[str, Any]
  chosen: Int[np.ndarray, 'examples tokens sites choices'] | None
  on: Bool[np.ndarray, 'examples tokens sites'] | None


def inspect(
  model: Any,
  objective: Callable[..., Any],
  variables: PyTree,
  batch: tuple[PyTree[Shaped[np.ndarray, 'N ...']], PyTree[Shaped[np.ndarray, 'N ...']]],
) -> Inspection:
  """Returns what the routers of a pool do with examples, all gates on.

  Examples go through in batches of the same size, of which the last is filled up with repetitions;
  what routers did is averaged over the whole ones. Routers that draw at random draw anew for each.

  Args:
    model: with routers.
    objective: from outputs and targets to loss and accuracy, see `objectives`.
    variables: `{'params': pool}`.
    batch: (x [N, ...], y [N, ...]).

  Two texts of four tokens, each of which chose one of four experts in the one layer:

  >>> from additive_jax.models import Experts, Transformer
  >>> from additive_jax.run.objectives import language
  >>> model = Transformer(1, 8, 2, 16, 3, num_tokens=5, causal=True, routing=Experts(4, top_k=1))
  >>> x = np.zeros((2, 4), np.uint8)
  >>> pool = jax.jit(model.init)(jax.random.key(0), x)
  >>> inspection = inspect(model, language, pool, (x, x))
  >>> inspection.chosen.shape, list(inspection.facts)
  ((2, 4, 1, 1), ['block_00__mlp'])
  """
  x, y = batch
  expected = expected_of(model, objective, rows(x, slice(1)))
  x, y = jax.tree.map(np.asarray, (x, y))
  expected.check(x, y, 'batch')
  count = num_examples(x)
  size = min(BATCH, count)
  numbers = np.minimum(np.arange(-(-count // size) * size), count - 1).reshape(-1, size)
  keys = jax.random.split(jax.random.key(0), len(numbers))
  look = functools.partial(_look, model, objective, variables)
  parts = [processes.to_host(look(*rows((x, y), n), key)) for n, key in zip(numbers, keys)]
  loss, accuracy = (
    float(np.concatenate([scores[i] for scores, *_ in parts])[:count].mean(dtype=np.float64))
    for i in range(2)
  )
  whole_facts = [facts for _, facts, _ in parts[: count // size]]
  facts = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *whole_facts)
  choices = [sites for *_, sites in parts]
  return Inspection(
    loss, accuracy, facts, _joined(choices, 'indices', count), _joined(choices, 'on', count)
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _look(model, objective, variables, x, y, key):
  outputs, facts, chosen = ways.chosen(model, variables, x, key)
  return scores_of(objective, outputs, y, by_token=True), facts, chosen


def _joined(choices, field, count):
  """Returns a field of all batches and sites, [count, T, S, …]; None where some site has none."""
  names = sorted(choices[0])
  if any(getattr(choices[0][name], field) is None for name in names):
    return None
  parts = [np.stack([getattr(sites[name], field) for name in names], 2) for sites in choices]
  return np.concatenate(parts)[:count]
