"""What the routers of a trained network do with examples."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int, PyTree, Shaped

from additive_jax.batches import num_examples, rows
from additive_jax.parallel import processes
from additive_jax.run import ways
from additive_jax.run.expected import check_task, expected_of
from additive_jax.run.tasks import Task, added_up

BATCH = 32  # examples whose choices are looked at together


@dataclasses.dataclass(frozen=True)
class Inspection:
  """What a trained network with routers does with N examples.

  Attributes:
    scores: loss and metrics over the examples, by name.
    facts: by site, means over the whole batches.
    chosen: numbers of what each token chose at each site; None where nothing is chosen.
    on: which tokens were computed; None for all.
  """

  scores: dict[str, float]
  facts: dict[str, Any]
  chosen: Int[np.ndarray, 'examples tokens sites choices'] | None
  on: Bool[np.ndarray, 'examples tokens sites'] | None


def inspect(
  model: Any,
  task: Task,
  variables: PyTree,
  batch: tuple[PyTree[Shaped[np.ndarray, 'N ...']], PyTree[Shaped[np.ndarray, 'N ...']]],
) -> Inspection:
  """Returns what the routers of a pool do with examples, all gates on.

  Examples go through in batches of the same size, of which the last is filled up with repetitions;
  what routers did is averaged over the whole ones. Routers that draw at random draw anew for each.

  Args:
    model: with routers.
    task: see `tasks`.
    variables: `{'params': pool}`.
    batch: (x [N, ...], y [N, ...]).

  Two texts of four tokens, each of which chose one of four experts in the one layer:

  >>> from additive_jax.models import Experts, Transformer
  >>> model = Transformer(1, 8, 2, 16, 3, num_tokens=5, causal=True, routing=Experts(4, top_k=1))
  >>> x = np.zeros((2, 4), np.uint8)
  >>> pool = jax.jit(model.init)(jax.random.key(0), x)
  >>> inspection = inspect(model, Task('language'), pool, (x, x))
  >>> inspection.chosen.shape, list(inspection.facts)
  ((2, 4, 1, 1), ['block_00__mlp'])
  """
  expected = expected_of(model, task, rows(batch[0], slice(1)))
  x, y = jax.tree.map(np.asarray, batch)
  expected.check(x, y, 'batch')
  count = num_examples(x)
  size = min(BATCH, count)
  check_task(model, task, rows(x, slice(size)), y)
  numbers = np.minimum(np.arange(-(-count // size) * size), count - 1).reshape(-1, size)
  keys = jax.random.split(jax.random.key(0), len(numbers))
  look = functools.partial(_look, model, task, variables)
  parts = [processes.to_host(look(*rows((x, y), n), key)) for n, key in zip(numbers, keys)]
  statistics = zip(*(statistics for statistics, *_ in parts))
  sums = added_up([np.concatenate(part)[:count] for part in statistics])
  scores = {name: float(value) for name, value in task.finish(sums, task.facts(y)).items()}
  whole_facts = [facts for _, facts, _ in parts[: count // size]]
  facts = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *whole_facts)
  choices = [sites for *_, sites in parts]
  indices, on = (_joined(choices, field, count) for field in ('indices', 'on'))
  return Inspection(scores, facts, indices, on)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _look(model, task, variables, x, y, key):
  outputs, facts, chosen = ways.chosen(model, variables, x, key)
  return task.statistics(outputs, y), facts, chosen


def _joined(choices, field, count):
  """Returns a field of all batches and sites, [count, T, S, …]; None where some site has none."""
  names = sorted(choices[0])
  if any(getattr(choices[0][name], field) is None for name in names):
    return None
  parts = [np.stack([getattr(sites[name], field) for name in names], 2) for sites in choices]
  return np.concatenate(parts)[:count]
