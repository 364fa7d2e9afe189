"""Does a Flax module keep the contract of an additive network? For those who bring their own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from additive_jax.batches import num_examples, rows
from additive_jax.errors import UserError, checked_seed, one_line
from additive_jax.run.tasks import Task, task_of
from additive_jax.testing import form, purity, runs, shapes, speed
from additive_jax.testing.case import Case

log = logging.getLogger('additive_jax')

EXAMPLES = 8  # that a batch is cut to: more find nothing that fewer do not


class ContractError(AssertionError):
  """A model does not keep the contract of an additive network.

  Attributes:
    violations: one sentence for each clause that is broken: what is wrong, and how to mend it.

  >>> print(ContractError('MyNetwork', ['It has no sites: …', 'It has no space: …'], complete=True))
  MyNetwork does not keep the contract of an additive network:
  1. It has no sites: …
  2. It has no space: …
  """

  def __init__(self, name: str, violations: list[str], complete: bool):
    self.violations = violations
    lines = [f'{name} does not keep the contract of an additive network:']
    lines += [f'{i}. {sentence}' for i, sentence in enumerate(violations, 1)]
    if not complete:
      lines.append('Clauses that depend on these could not be checked: mend them and check again.')
    super().__init__('\n'.join(lines))


# Each adds what it finds to the case, and returns whether the next can be checked at all.
BY_SHAPES: tuple[Callable[[Case], bool], ...] = (
  form.is_usable_module,
  form.has_its_parts,
  shapes.parts_fit_at_init,
  shapes.has_one_pool,
  shapes.parts_take_any_batch,
  shapes.inner_gates_take_every_form,
)
CLAUSES = (
  *BY_SHAPES,
  shapes.space_matches,
  purity.parts_are_pure,
  runs.ways_agree,
  runs.off_gates_read_nothing,
  speed.steps_are_fast,
)
QUICK = (*BY_SHAPES, purity.one_run_is_sound)  # before a training


def check_quickly(
  model: nn.Module,
  batch: tuple[Any, Any],
  *,
  task: str | Task | Callable[..., Any] = 'classification',
) -> None:
  """Checks what `check_model` does as far as shapes show it and one run of every part, which
  compiles two small programs; experiments begin with it.

  Args:
    model, task: as for `check_model`.
    batch: (x [B, ...], y [B, ...]); two examples are enough, which may be alike.

  Raises:
    UserError: the first clause that is broken, in one line.

  >>> check_quickly(nn.Dense(3), (np.eye(2, dtype=np.float32), np.zeros(2, int)))
  Traceback (most recent call last):
  additive_jax.errors.UserError: Dense: It has no embed (input to stream): define a method ...
  """
  x, y = _pair(batch)
  name = model.__name__ if isinstance(model, type) else type(model).__name__
  case = Case(model, x, y, y, task_of(task), max_structures=2, seed=0, quick=True)
  try:
    with np.errstate(all='ignore'):
      all(clause(case) for clause in QUICK)
  except SystemExit as error:
    case.fail(f'It ends the program (sys.exit, {error.code}).')
  if case.violations:
    first, *others = case.violations
    more = f' {len(others)} more are wrong' if others else ''
    raise UserError(f'{name}: {one_line(ValueError(first))}{more}')


def check_model(
  model: nn.Module,
  batch: tuple[Any, Any],
  *,
  task: str | Task | Callable[..., Any] = 'classification',
  max_structures: int = 8,
  seed: int = 0,
) -> str:
  """Checks the whole contract of an additive network on your Flax module.

  The clauses: it provides embed, sites and readout; names of sites and gates are unique; fields are
  hashable; the pool is the same tree, shapes and values for whatever structure init is called with,
  and holds nothing but parameters; every site with a residual gate keeps the stream's shape and
  dtype; one with inner gates takes them in every form, and they change neither shapes nor which
  parameters exist; every part compiles, is deterministic and finite, treats examples independently
  and takes any batch size; static, conditional, masked (gates per example) and shared-prefix runs
  agree, the first three in gradients too, and so does `model.apply(variables, x, structure)`; a
  residual gate that is off reads no parameters; `space` names the gates in order; targets are
  numbers of outputs. Runs are compared at a pool moved away from init, where zero-initialised
  layers would hide everything. Each clause is logged when it starts, at level INFO.

  Args:
    model: an instance, bound to nothing.
    batch: (x [B, ...], y [B, ...]), at least two different examples; of several inputs a pytree of
      arrays [B, ...]. Targets are checked for all
      of them, everything else on eight.
    task: a name, a `Task`, or a loss as of `evaluate_structures`.
    max_structures: how many structures to compare, at least 2: all if there are no more, else
      all-on, all-off, inner gates alone off, and a random sample.
    seed: for the pool and the sample.

  Returns:
    A report of what was checked, with notes on what is allowed but may surprise, such as a site
    that adds nothing at init. One, also a warning, is of convolutions that are neither Linen's nor
    `models.conv_general_dilated`, and so some 90 times slower in conditionals on CPU, as measured.

  Raises:
    ContractError: lists every clause that is broken, in words.
    UserError: the batch or an option cannot serve.

  In a test of your own, `check_model(MyNetwork(), (x, y))` takes some seconds. What breaks the
  contract is told at once:

  >>> check_model(nn.Dense(3), (np.eye(4, dtype=np.float32), np.zeros(4, int)))
  Traceback (most recent call last):
  additive_jax.testing.check.ContractError: Dense does not keep the contract of an additive ...
  1. It has no embed (input to stream): define a method embed, or make it a submodule in setup ...
  """
  x, y = _pair(batch)
  if max_structures < 2:
    raise UserError(f'max_structures {max_structures}: expected at least 2')
  few_x, few_y = rows((x, y), _few(x))
  case = Case(model, few_x, few_y, y, task_of(task), max_structures, checked_seed(seed))
  name = model.__name__ if isinstance(model, type) else type(model).__name__
  # Numbers that are not finite are reported, not warned of.
  with jax.default_matmul_precision('highest'), np.errstate(all='ignore'):
    complete = all(_check(case, name, number) for number in range(len(CLAUSES)))
  if case.violations:
    raise ContractError(name, case.violations, complete)
  return '\n'.join([f'{name} keeps the contract of an additive network.', *case.notes])


def _check(case, name, number) -> bool:
  """Checks and logs one clause; returns whether the next can be checked at all."""
  clause = CLAUSES[number]
  title = clause.__name__.replace('_', ' ')
  log.info('check_model %s, %d of %d: %s', name, number + 1, len(CLAUSES), title)
  start = time.perf_counter()
  goes_on = clause(case)
  log.debug('check_model %s: %s took %.1f s', name, title, time.perf_counter() - start)
  return goes_on


def _pair(batch) -> tuple[Any, Any]:
  """Returns inputs and targets of a batch, in NumPy, of the dtypes that JAX would give them."""
  if not isinstance(batch, tuple | list) or len(batch) != 2:
    shape = f' of shape {np.shape(batch)}' if hasattr(batch, 'shape') else ''
    raise UserError(f'batch is a {type(batch).__name__}{shape}: expected a pair (x, y)')
  x, y = jax.tree.map(np.asarray, tuple(batch))
  if any(not parts or not all(a.ndim for a in parts) for parts in map(jax.tree.leaves, (x, y))):
    raise UserError(
      f'batch of inputs of shape {jax.tree.map(np.shape, x) or ()} and targets of shape '
      f'{jax.tree.map(np.shape, y) or ()}: expected a pair (x [B, ...], y [B, ...])'
    )
  if len({len(leaf) for leaf in jax.tree.leaves((x, y))}) > 1:
    given = f'{num_examples(x)} inputs and {num_examples(y)} targets'
    raise UserError(f'{given}: expected the same number')
  return jax.tree.map(lambda a: a.astype(jax.dtypes.canonicalize_dtype(a.dtype)), (x, y))


def _few(x) -> np.ndarray:
  """Returns the numbers of the first examples, one that differs from the first among them."""
  count = num_examples(x)
  varies = [(leaf != leaf[:1]).reshape(count, -1).any(1) for leaf in jax.tree.leaves(x)]
  different = np.flatnonzero(np.any(varies, axis=0))
  if not len(different):
    raise UserError(
      f'a batch of {count} examples, all alike: expected at least two different ones, '
      'to see whether examples are independent'
    )
  few = np.arange(min(count, EXAMPLES))
  few[-1] = max(few[-1], different[0])
  return few
