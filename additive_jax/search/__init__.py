"""Search for good structures where there are too many to evaluate all of them.

Under a budget: `find` searches by any evaluator, `search_pool` a pool. A method is an object of
`BY_BUDGET`, or one of your own with `run(problem)`. It gives a `Path`, the best structure at every
cost. `leave_one_out` and `effects` say what single gates do.

Without one: `Search` is the loop of Exp 1's older methods, generations of structures that
`methods.METHODS` propose.
"""

from additive_jax.search.bayesian import Bayesian
from additive_jax.search.budgeted import BY_BUDGET, find, search_pool
from additive_jax.search.costs import Budget, Costs
from additive_jax.search.evolution import Evolution, Random
from additive_jax.search.gate_effects import Contributions, Effects, effects, leave_one_out
from additive_jax.search.greedy import Beam, Greedy, LazyGreedy, LeaveOneOut
from additive_jax.search.loop import Search
from additive_jax.search.methods import METHODS, Evaluated
from additive_jax.search.path import Path
from additive_jax.search.problem import Method, Problem
from additive_jax.search.surrogate import Cosine, Surrogate

__all__ = [
  'BY_BUDGET',
  'METHODS',
  'Bayesian',
  'Beam',
  'Budget',
  'Contributions',
  'Cosine',
  'Costs',
  'Effects',
  'Evaluated',
  'Evolution',
  'Greedy',
  'LazyGreedy',
  'LeaveOneOut',
  'Method',
  'Path',
  'Problem',
  'Random',
  'Search',
  'Surrogate',
  'effects',
  'find',
  'leave_one_out',
  'search_pool',
]
