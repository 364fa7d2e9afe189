"""A clause about speed: what XLA on CPU runs far slower inside of conditionals than outside."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn

from additive_jax import run
from additive_jax.gates.structure import Structure
from additive_jax.models.additive import gate_names
from additive_jax.models.flops import programs_of
from additive_jax.testing.case import Case

log = logging.getLogger('additive_jax')

MOST = 2.0  # times as long as outside of conditionals: more is said
REPEATS = 5


def steps_are_fast(case: Case) -> bool:
  """Notes, and warns, where the gradient of the conditional run takes far longer than that of the
  static one, for convolutions that are not computed by `models.convolution`: measured, and only of
  a network that has some.
  """
  if jax.default_backend() != 'cpu' or case.violations or not gate_names(case.model):
    return True
  on = Structure((True,) * len(gate_names(case.model)))
  conditional = _gradient(case, functools.partial(run.conditional, case.model))
  given = case.moved, np.array(on.bits)
  if not any(map(_is_slow, _inside(jax.make_jaxpr(conditional)(*given).jaxpr))):
    return True
  static = _gradient(case, lambda variables, x, _: run.static(case.model, variables, x, on))
  ratio = _seconds(conditional, given) / _seconds(static, given)
  if ratio > MOST:
    text = (
      f'A training step in conditionals takes {ratio:.1f} times as long as outside of them on this '
      "CPU, for convolutions of JAX's own: nn.Conv, or aj.models.conv_general_dilated in place of "
      'jax.lax.conv_general_dilated, is as fast as outside.'
    )
    case.notes.append(text)
    log.warning('%s: %s', type(case.model).__name__, text)
  return True


def _gradient(case: Case, way: Callable[..., Any]) -> Callable[..., Any]:
  """Returns the gradient of the mean loss of a way to run, a function of variables and bits."""
  loss = lambda variables, bits: case.task.mean_loss(way(variables, case.x, bits), case.y)
  return jax.grad(loss)


def _inside(program: Jaxpr, within: bool = False) -> Iterator[JaxprEqn]:
  """Yields the equations inside of conditionals and loops."""
  for equation in program.eqns:
    if within:
      yield equation
    for part in programs_of(equation):
      yield from _inside(part.jaxpr, within or equation.primitive.name in ('cond', 'while', 'scan'))


def _is_slow(equation: JaxprEqn) -> bool:
  """Whether an equation is a convolution of another layout than the fast one; see
  `models.convolution`. One over groups of the batch, which that writes too, is not slower."""
  if equation.primitive.name != 'conv_general_dilated' or equation.params['batch_group_count'] > 1:
    return False
  layouts = equation.params['dimension_numbers']
  axes = len(layouts.lhs_spec)
  sides = tuple(range(1, axes - 1))
  fast = (0, axes - 1, *sides), (axes - 1, axes - 2, *range(axes - 2)), (0, axes - 1, *sides)
  return tuple(map(tuple, layouts)) != fast


def _seconds(function: Callable[..., Any], given: tuple[Any, ...]) -> float:
  """Returns the least time that a compiled function takes."""
  program = jax.jit(function)
  jax.block_until_ready(program(*given))
  times = []
  for _ in range(REPEATS):
    began = time.perf_counter()
    jax.block_until_ready(program(*given))
    times.append(time.perf_counter() - began)
  return min(times)
