"""Bytes that a program holds at once, from its equations alone: an estimate, before XLA sees it.

Equations run in the order in which they were traced. Each makes its results; an array is given up
after the last equation that reads it. What XLA fuses costs nothing here either:

  reshape, slice, broadcast                      a view of what they read
  element-wise work                              written over an argument that is read no more
  jit, cond, scan and other calls                the most that their body holds at once
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var
from jaxtyping import PyTree

VIEWS = (
  *('reshape', 'squeeze', 'expand_dims', 'slice', 'split', 'transpose', 'broadcast_in_dim'),
  *('iota', 'copy', 'stop_gradient'),
)
# What makes an array of its own, whatever it reads.
WHOLE = ('dot_general', 'conv_general_dilated', 'gather', 'scatter-add', 'concatenate')


def bytes_of(tree: PyTree) -> int:
  """Returns the bytes of arrays, or of arrays of such shapes.

  >>> bytes_of({'a': jnp.ones((2, 3)), 'b': jax.ShapeDtypeStruct((5,), jnp.bfloat16)})
  34
  """
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def live_bytes(function: Callable[..., Any], *args: Any) -> int:
  """Returns the most bytes that `function(*args)` holds at once beside its arguments.

  A square, an array like x, and its sum, which takes its place:

  >>> live_bytes(lambda x: (x @ x).sum(), jax.ShapeDtypeStruct((8, 8), jnp.float32))
  256

  Args:
    args: pytrees of arrays, or of their shapes.
  """
  return _most(jax.make_jaxpr(function)(*args).jaxpr)


def saved_bytes(function: Callable[..., Any], *args: Any) -> int:
  """Returns the bytes that a forward pass keeps for the backward pass beside its arguments.

  >>> saved_bytes(lambda x: jnp.sin(x).sum(), jax.ShapeDtypeStruct((8,), jnp.float32))
  32
  """
  kept = lambda *args: jax.tree.leaves(jax.vjp(function, *args)[1])
  program = jax.make_jaxpr(kept)(*args).jaxpr
  given = set(program.invars)
  return sum(map(_size, {v for v in program.outvars if isinstance(v, Var) and v not in given}))


def _most(program: Jaxpr) -> int:
  last = _last_uses(program)
  held: dict[Var, int] = {}  # the bytes of each array that are its own, not those it is a view of
  most = 0
  for i, equation in enumerate(program.eqns):
    read = {v for v in equation.invars if isinstance(v, Var) and v in held}
    ends = {v for v in read if last[v] == i}
    made = sum(map(_size, equation.outvars))
    bodies = list(_bodies(equation))
    if equation.primitive.name in VIEWS:
      _view(equation, read, held, last)
      made = 0
    elif bodies:
      made = max(made, *map(_most, bodies))
    elif equation.primitive.name not in WHOLE:
      made -= min(made, sum(held[v] for v in ends))
    most = max(most, sum(held.values()) + made)
    if equation.primitive.name not in VIEWS:
      held |= {v: _size(v) for v in equation.outvars if v in last}
    for variable in [v for v in held if last[v] <= i]:
      del held[variable]
  return most


def _view(equation: JaxprEqn, read: set[Var], held: dict[Var, int], last: dict[Var, int]) -> None:
  """Makes what a view reads live as long as the view."""
  ends = max((last.get(v, 0) for v in equation.outvars), default=0)
  for source in read:
    last[source] = max(last[source], ends)
  held |= {v: 0 for v in equation.outvars if v in last}


def _last_uses(program: Jaxpr) -> dict[Var, int]:
  """Returns the number of the last equation that reads each array; results outlive all."""
  last = {v: i for i, e in enumerate(program.eqns) for v in e.invars if isinstance(v, Var)}
  return last | {v: len(program.eqns) for v in program.outvars if isinstance(v, Var)}


def _bodies(equation: JaxprEqn) -> Iterator[Jaxpr]:
  for value in equation.params.values():
    for one in value if isinstance(value, tuple | list) else [value]:
      if isinstance(one, Jaxpr | ClosedJaxpr):
        yield one.jaxpr if isinstance(one, ClosedJaxpr) else one


def _size(variable: Any) -> int:
  shape = variable.aval
  return shape.size * getattr(shape.dtype, 'itemsize', 0) if hasattr(shape, 'dtype') else 0
