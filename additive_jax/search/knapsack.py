"""The exact best structure of a model of the loss under a budget: a mixed-integer programme.

The loss is `constant + Σ_i main[i]·g_i + Σ_{i<j} pairs[i, j]·g_i·g_j` for gates g in {0, 1}, the
costs are `Costs`. Without pairs it is a knapsack. Solved to the optimum by HiGHS, through SciPy's
`milp`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from additive_jax.errors import UserError
from additive_jax.search.costs import Costs


def best_within(
  costs: Costs,
  main: Float[np.ndarray, ' n'],
  limit: float,
  pairs: Float[np.ndarray, 'n n'] | None = None,
  without: Bool[np.ndarray, 'S n'] | None = None,
) -> Bool[np.ndarray, ' n']:
  """Returns the structure of lowest modelled loss that costs at most `limit`, in canonical form.

  >>> space = aj.Space((aj.Gate('a'), aj.Gate('b'), aj.Gate('c')))
  >>> costs = Costs('params', space, gates=(3.0, 4.0, 5.0), fixed=0.0)
  >>> best_within(costs, np.array([-3.0, -4.0, -6.0]), limit=8.0).tolist()
  [True, False, True]

  Args:
    costs: the cost model.
    main: what each gate adds to the loss when it is on.
    limit: in the unit of the costs.
    pairs: what two gates add when both are on; above the diagonal. Zeros cost nothing.
    without: structures that it must not be, such as those that are known.

  Raises:
    UserError: where no structure is that cheap, or no other one.
  """
  from scipy import optimize

  n = costs.space.num_gates
  first, second = np.nonzero(np.triu(pairs, 1)) if pairs is not None else (np.zeros(0, int),) * 2
  num_shared, num_pairs = len(costs.shared), len(first)
  # Variables: gates, whether what several share is due, whether both gates of a pair are on.
  size = n + num_shared + num_pairs
  objective = np.zeros(size)
  objective[:n] = main
  if pairs is not None:
    objective[n + num_shared :] = pairs[first, second]
  rows = _constraints(costs, limit, (first, second), objective)
  rows += [_differs(row) for row in (() if without is None else without)]
  matrix, bounds = _matrix(rows, size)
  integers = np.zeros(size)
  integers[:n] = 1  # the others follow
  scale = np.abs(objective).max() or 1.0
  result: Any = optimize.milp(
    objective / scale,
    integrality=integers,
    bounds=optimize.Bounds(0, 1),
    constraints=optimize.LinearConstraint(matrix, -np.inf, bounds),
    options={'mip_rel_gap': 0.0},
  )
  if result.x is None:
    other = '' if without is None else f', other than {len(without)} of them'
    raise UserError(
      f'{costs.told(limit)}: expected at least those of the cheapest structure, '
      f'{costs.cheapest()}{other}'
    )
  return costs.canonical(result.x[None, :n] > 0.5)[0]


def _constraints(
  costs: Costs, limit: float, pairs: tuple[Any, Any], objective: Float[np.ndarray, ' size']
) -> list[tuple[dict[int, float], float]]:
  """Returns what is asked of the variables, each as Σ coefficient·variable ≤ bound."""
  n = costs.space.num_gates
  rows: list[tuple[dict[int, float], float]] = []
  unit = costs.full or 1.0  # so that a cost is a share, for the solver's tolerances
  budget = {i: cost / unit for i, cost in enumerate(costs.gates)}
  budget |= {n + k: cost / unit for k, (cost, _) in enumerate(costs.shared)}
  rows.append((budget, (limit * (1 + 1e-9) - costs.fixed) / unit))
  rows += [({i: 1.0, int(host): -1.0}, 0.0) for i, host in enumerate(costs.hosts) if host != i]
  for k, (_, gates) in enumerate(costs.shared):
    rows += [({gate: 1.0, n + k: -1.0}, 0.0) for gate in gates]
  for k, (i, j) in enumerate(zip(*(some.tolist() for some in pairs)), start=n + len(costs.shared)):
    # Both on gives k: k ≤ i, k ≤ j, k ≥ i + j − 1; what the sign of the pair calls for suffices.
    if objective[k] < 0:
      rows += [({k: 1.0, i: -1.0}, 0.0), ({k: 1.0, j: -1.0}, 0.0)]
    else:
      rows.append(({i: 1.0, j: 1.0, k: -1.0}, 1.0))
  return rows


def _differs(row: Bool[np.ndarray, ' n']) -> tuple[dict[int, float], float]:
  """Returns that a structure differs from another in at least one gate:
  Σ over those on of g_i − Σ over those off of g_i ≤ number on − 1."""
  return {i: 1.0 if on else -1.0 for i, on in enumerate(row)}, float(row.sum()) - 1.0


def _matrix(rows: list[tuple[dict[int, float], float]], size: int) -> tuple[Any, Any]:
  """Returns the coefficients of the constraints as a sparse matrix, and their bounds."""
  from scipy import sparse

  entries = [(r, c, value) for r, (row, _) in enumerate(rows) for c, value in row.items()]
  where_row, where_column, values = zip(*entries)
  matrix = sparse.csr_array((values, (where_row, where_column)), shape=(len(rows), size))
  return matrix, np.array([bound for _, bound in rows])
