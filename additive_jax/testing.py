"""Does a Flax module keep the contract of an additive network? For those who bring their own."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from additive_jax import contract, contract_runs
from additive_jax.errors import UserError
from additive_jax.objectives import objective_of


class ContractError(AssertionError):
  """A model does not keep the contract of an additive network.

  Attributes:
    violations: one sentence for each clause that is broken: what is wrong, and how to mend it.
  """

  def __init__(self, name: str, violations: list[str], complete: bool):
    self.violations = violations
    lines = [f'{name} does not keep the contract of an additive network:']
    lines += [f'{i}. {sentence}' for i, sentence in enumerate(violations, 1)]
    if not complete:
      lines.append('Clauses that depend on these could not be checked: mend them and check again.')
    super().__init__('\n'.join(lines))


# Each takes the case, writes down what it finds, and says whether the next can be checked at all.
CLAUSES = (
  contract.is_usable_module,
  contract.has_its_parts,
  contract.has_one_pool,
  contract.parts_keep_shapes,
  contract.space_matches,
  contract_runs.parts_are_pure,
  contract_runs.ways_agree,
  contract_runs.off_gates_read_nothing,
)


def check_model(
  model,
  batch,
  *,
  task: str | Callable = 'classification',
  max_structures: int = 16,
  seed: int = 0,
) -> str:
  """Runs the whole contract of an additive network on your Flax module.

  The clauses: it provides embed, sites and readout; gate names are unique; fields are hashable; the
  pool is the same tree, shapes and values for whatever structure init is called with, and holds
  nothing but parameters; every site keeps the stream's shape and dtype; every part compiles, is
  deterministic and finite, treats examples independently and takes any batch size; static,
  conditional, masked and shared-prefix runs agree, the first three in gradients too, and so does
  `model.apply(variables, x, structure)`; a gate that is off reads no parameters; `space` names the
  gates in order. Runs are compared at a pool moved away from init, where zero-initialised layers
  would hide everything.

  Args:
    model: an instance, bound to nothing.
    batch: (x [B, ...], y [B, ...]), at least two different examples.
    task: 'classification', 'language' or 'regression', or a function as in `objectives`.
    max_structures: how many structures to compare, at least 2: all if there are no more, else
      all-on, all-off and a random sample. Each compiles once.
    seed: for the pool and the sample.

  Returns:
    What was checked, with notes on what is allowed but may surprise, such as a site that adds
    nothing at init.

  Raises:
    ContractError: lists every clause that is broken, in words.
    UserError: the batch or an option cannot serve.
  """
  x, y = (np.asarray(part) for part in batch)
  if len(x) != len(y):
    raise UserError(f'{len(x)} inputs and {len(y)} targets: expected the same number')
  if len(x) < 2 or (x == x[:1]).all():
    raise UserError(
      f'a batch of {len(x)} examples, all alike: expected at least two different ones, '
      'to see whether examples are independent'
    )
  if max_structures < 2:
    raise UserError(f'max_structures {max_structures}: expected at least 2')
  x, y = (part.astype(jax.dtypes.canonicalize_dtype(part.dtype)) for part in (x, y))
  case = contract.Case(model, x, y, objective_of(task), max_structures, seed)
  with jax.default_matmul_precision('highest'):
    complete = all(clause(case) for clause in CLAUSES)
  name = model.__name__ if isinstance(model, type) else type(model).__name__
  if case.violations:
    raise ContractError(name, case.violations, complete)
  return '\n'.join([f'{name} keeps the contract of an additive network.', *case.notes])
