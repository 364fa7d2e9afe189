"""FLOPs of a program: XLA's own count of its straight parts, times the trips of its loops.

XLA's analysis looks at a program before it runs and takes the body of every loop once. A program is
therefore counted as a whole, and what XLA cannot know is put right, equation by equation:

  equation               counts as
  scan, fori_loop        its body, times its trips
  while_loop             the same where the trips can be read off it (a counter with a constant step
                         and bound); anything else is refused
  cond, switch           its dearest branch, as XLA has it
  shard_map              what one device runs, times the devices
  ragged_dot             2 · rows · contracted · columns, each row with its own group alone
  stated(f, flops)       what it says, and so does a Pallas kernel with a `cost_estimate`
  callbacks, other       refused, for nothing says what they compute
  kernels, LAPACK's

jit, checkpoint, custom_jvp and custom_vjp are looked through. Everything else is XLA's: a dot is 2
operations for each product, element-wise work is one for each element, a transcendental function
none, and a sort or a gather what XLA has for it. Programs are lowered for the host, so that all
backends agree; what only an accelerator can run, for that.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import flax
import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun
from jax.sharding import PartitionSpec

from additive_jax.errors import UserError

STATED = 'stated_flops_'  # how the name of a function begins that says what it costs
CALLS = ('jit', 'pjit', 'remat2', 'checkpoint', 'custom_jvp_call', 'custom_vjp_call', 'closed_call')
KERNEL = 'pallas_call'
CALLBACKS = ('pure_callback', 'io_callback', 'ffi_call', 'custom_call')
LAPACK = ('cholesky', 'eig', 'eigh', 'geqp3', 'geqrf', 'hessenberg', 'householder_product', 'lu')
LAPACK += ('ormqr', 'qr', 'schur', 'svd', 'triangular_solve', 'tridiagonal', 'tridiagonal_solve')
OWN_CODE = tuple(f'{package.__path__[0]}{os.sep}' for package in (jax, flax))


def count_flops(function: Callable[..., Any], *args: Any, of: str = 'a program') -> float:
  """Returns the FLOPs of `function(*args)`, of which the shapes alone matter.

  >>> double = lambda x: 2 * x
  >>> count_flops(double, jnp.ones(500))
  500.0

  A loop counts its trips, and its counter:

  >>> count_flops(lambda x: jax.lax.fori_loop(0, 10, lambda i, x: double(x), x), jnp.ones(500))
  5011.0

  Args:
    function: can be traced.
    args: pytrees of arrays, or of their shapes.
    of: names the program in an error.

  Raises:
    UserError: for a loop whose trips are not known before it runs, or an operation that cannot be
      counted.
  """
  shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), args)
  return count_traced(jax.jit(function).trace(*shapes), of)


def count_traced(traced: jax.stages.Traced, of: str = 'a program') -> float:
  """Returns the FLOPs of what `jax.jit(function).trace(*args)` gives; see `count_flops`.

  >>> count_traced(jax.jit(jnp.negative).trace(jnp.ones(3)))
  3.0
  """
  beyond = _Count(of).beyond(traced.jaxpr)  # refuses what no backend counts
  return _flops(traced) + beyond


def stated(function: Callable[..., Any], flops: float) -> Callable[..., Any]:
  """Returns `function`, compiled, which counts as that many FLOPs whatever it does.

  For what nobody can count: a kernel of one's own, a loop that ends when it has converged. It is a
  pure function of arrays, and is counted once for each time it is called.

  >>> halve = lambda x: jax.lax.while_loop(lambda x: (x > 1).any(), lambda x: x / 2, x)
  >>> count_flops(stated(halve, 60), jnp.ones(3))
  60.0
  """
  if not (math.isfinite(flops) and flops >= 0):
    raise UserError(f'stated flops {flops}: expected a finite number, 0 or more')

  def call(*args: Any) -> Any:
    return function(*args)

  call.__name__ = f'{STATED}{float(flops)!r}'
  return jax.jit(call)


class _Count:
  """Counts the programs of one part.

  Attributes:
    of: the part's name.
    mesh: of the `shard_map` that they stand in, or None.
  """

  def __init__(self, of: str, mesh: Any = None):
    self.of, self.mesh = of, mesh

  def total(self, program: ClosedJaxpr) -> float:
    """Returns the FLOPs of a program."""
    return self.by_xla(program) + self.beyond(program)

  def beyond(self, program: ClosedJaxpr) -> float:
    """Returns what has to be added to XLA's count of a program."""
    return sum(self.of_equation(equation) for equation in self.special(program.jaxpr))

  def special(self, program: Jaxpr) -> Iterator[JaxprEqn]:
    """Yields the equations that XLA counts otherwise, also those within plain calls."""
    for equation in program.eqns:
      name = equation.primitive.name
      if (
        name in ('scan', 'while', 'ragged_dot_general', 'shard_map')
        or _stated(equation) is not None
      ):
        yield equation
      elif name in (*CALLBACKS, *LAPACK, KERNEL):
        self.refuse(name, equation, 'what XLA can count')
      elif name in CALLS:
        for inner in programs_of(equation):
          yield from self.special(inner.jaxpr)
      elif any(any(self.special(inner.jaxpr)) for inner in programs_of(equation)):
        if name != 'cond':
          self.refuse(f'a loop in {name}', equation, 'it in scan, cond or jit')
        yield equation

  def of_equation(self, equation: JaxprEqn) -> float:
    """Returns what has to be added for an equation, of each kind that `special` yields."""
    name, params = equation.primitive.name, equation.params
    if name == 'scan' and params['unroll'] == 1 and params['length'] > 0:
      return self.of_loop(params['length'], params['jaxpr'])
    if name == 'scan':
      return params['length'] * self.total(params['jaxpr']) - self.alone(equation)
    if name == 'while':
      trips = _trips(equation)
      if trips is None:
        what = 'a while loop whose trips are known only when it runs'
        self.refuse(what, equation, 'lax.scan, lax.fori_loop between Python integers')
      return self.of_loop(trips, params['body_jaxpr'])
    if name == 'cond':
      counts = [(self.by_xla(branch), self.beyond(branch)) for branch in params['branches']]
      return max(map(sum, counts)) - max(by_xla for by_xla, _ in counts)
    if name == 'shard_map':
      return self.of_devices(equation)
    if name == 'ragged_dot_general':
      return _ragged(equation) - self.alone(equation)
    return (_stated(equation) or 0.0) - self.alone(equation)

  def of_devices(self, equation: JaxprEqn) -> float:
    """Returns what has to be added for a `shard_map`, of which XLA counts one device."""
    params, body = equation.params, _closed(equation.params['jaxpr'])
    devices = math.prod(params['mesh'].shape[axis] for axis in params['newly_manual_axes'])
    if params['check_vma'] and any(self.special(body.jaxpr)):
      self.refuse('a loop in shard_map', equation, 'it with check_vma=False')
    options = {key: params[key] for key in ('mesh', 'in_specs', 'out_specs', 'check_vma')}
    run = jax.shard_map(lambda *arguments: tuple(jaxpr_as_fun(body)(*arguments)), **options)
    of_one = self._by_xla(run, [variable.aval for variable in equation.invars])
    return (devices - 1) * of_one + devices * _Count(self.of, params['mesh']).beyond(body)

  def of_loop(self, trips: int, body: ClosedJaxpr) -> float:
    """Returns what has to be added for a loop, of which XLA counts one trip."""
    return (trips - 1) * self.by_xla(body) + trips * self.beyond(body)

  def refuse(self, what: str, equation: JaxprEqn, expected: str) -> NoReturn:
    """Raises an error that names the line of code."""
    raise UserError(
      f'the FLOPs of {self.of}: {what}{_where(equation)}: expected {expected}, or a function that '
      'says what it costs (additive_jax.models.flops.stated)'
    )

  def by_xla(self, program: ClosedJaxpr) -> float:
    """Returns XLA's count of a program."""
    return self._by_xla(jaxpr_as_fun(program), program.in_avals)

  def alone(self, equation: JaxprEqn) -> float:
    """Returns XLA's count of an equation."""
    if equation.primitive.name in CALLS:
      return self.by_xla(*programs_of(equation))
    run = functools.partial(equation.primitive.bind, **equation.params)
    return self._by_xla(run, [variable.aval for variable in equation.invars])

  def _by_xla(self, function: Callable[..., Any], arguments: Sequence[Any]) -> float:
    if self.mesh is not None:  # the axes that collectives name; shapes are those of one device
      every = PartitionSpec()
      options = {'mesh': self.mesh, 'in_specs': every, 'out_specs': every}
      function = jax.shard_map(function, check_vma=False, **options)
    shapes = [jax.ShapeDtypeStruct(one.shape, one.dtype) for one in arguments]
    return _flops(jax.jit(function).trace(*shapes))


def _flops(traced: jax.stages.Traced) -> float:
  """Returns XLA's count of a program, before it optimises it."""
  with _on_host():
    try:
      lowered = traced.lower()
    except Exception:
      if jax.default_backend() == 'cpu':
        raise
      lowered = traced.lower(lowering_platforms=(jax.default_backend(),))
    analysis = lowered.cost_analysis()
  if analysis is None:
    raise UserError(f'JAX counts no FLOPs on {jax.default_backend()}: expected arrays on the host')
  return float(analysis.get('flops', 0.0))


@contextlib.contextmanager
def _on_host() -> Iterator[None]:
  """Makes the host's backend lower programs, as others do not count before they compile."""
  if jax.default_backend() == 'cpu':
    yield
    return
  try:
    host = jax.local_devices(backend='cpu')[0]
  except RuntimeError as error:
    raise UserError(
      f'FLOPs are counted on the host, and JAX has {jax.default_backend()} alone: expected '
      'JAX_PLATFORMS without a value, or with cpu at its end'
    ) from error
  with jax.default_device(host):
    yield


def _stated(equation: JaxprEqn) -> float | None:
  """Returns the FLOPs that an equation itself says it takes; None where it says nothing."""
  name, params = str(equation.params.get('name', '')), equation.params
  if equation.primitive.name in CALLS and name.startswith(STATED):
    return float(name.removeprefix(STATED))
  estimate = params.get('cost_estimate') if equation.primitive.name == KERNEL else None
  return None if estimate is None else float(estimate.flops)


def _closed(program: Jaxpr | ClosedJaxpr) -> ClosedJaxpr:
  return program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())


def programs_of(equation: JaxprEqn) -> list[ClosedJaxpr]:
  """Returns the programs that an equation holds, such as the branches of a conditional.

  >>> (equation,) = jax.make_jaxpr(jax.jit(jnp.sin))(1.0).eqns
  >>> len(programs_of(equation))
  1
  """
  values: list[Any] = []
  for value in equation.params.values():
    values += value if isinstance(value, tuple | list) else [value]
  return [_closed(value) for value in values if isinstance(value, Jaxpr | ClosedJaxpr)]


def _ragged(equation: JaxprEqn) -> float:
  """Returns twice the products of a ragged dot, in which each row meets its own group alone."""
  arrays: list[Any] = [v.aval for v in equation.invars[:2]]
  lhs, rhs = (array.shape for array in arrays)
  numbers = equation.params['ragged_dot_dimension_numbers']
  (_, contracted), (_, batch) = numbers.dot_dimension_numbers
  known = {*contracted, *batch, *numbers.rhs_group_dimensions}
  return 2.0 * math.prod(lhs) * math.prod(n for i, n in enumerate(rhs) if i not in known)


def _trips(equation: JaxprEqn) -> int | None:
  """Returns how often a while loop runs, where a counter with a constant step is compared with a
  constant; None where that is not what it does."""
  params, given = equation.params, list[Any](equation.invars)
  test, body = params['cond_jaxpr'].jaxpr, params['body_jaxpr'].jaxpr
  num_test, num_body = params['cond_nconsts'], params['body_nconsts']
  start = given[num_test + num_body :]

  def carried(variable: Any) -> int | None:
    """The place among what the loop carries of a variable of its test."""
    place = test.invars.index(variable) if variable in test.invars else -1
    return place - num_test if place >= num_test else None

  def constant(variable: Any) -> Any:
    if isinstance(variable, Literal):
      return variable.val
    place = carried(variable)
    if place is None:
      source = given[test.invars.index(variable)] if variable in test.invars else None
    else:
      same = body.outvars[place] is body.invars[num_body + place]
      source = start[place] if same else None
    return source.val if isinstance(source, Literal) else None

  if len(test.eqns) != 1 or test.eqns[0].outvars[0] is not test.outvars[0]:
    return None
  compare = test.eqns[0]
  sign = {'lt': 1, 'le': 1, 'gt': -1, 'ge': -1}.get(compare.primitive.name)
  if sign is None or isinstance(compare.invars[0], Literal):
    return None
  place, bound = carried(compare.invars[0]), constant(compare.invars[1])
  if place is None or bound is None or not isinstance(start[place], Literal):
    return None
  step = _step(body, body.invars[num_body + place], body.outvars[place])
  if step is None or sign * step <= 0 or np.ndim(bound):
    return None
  span = sign * (int(bound) - int(start[place].val)) + (compare.primitive.name in ('le', 'ge'))
  return max(0, -(-span // (sign * step)))


def _step(body: Jaxpr, before: Any, after: Any) -> int | None:
  """Returns what the body of a loop adds to a whole number; None where it does something else."""
  is_whole = np.issubdtype(after.aval.dtype, np.integer)
  for equation in body.eqns:
    name, given = equation.primitive.name, equation.invars
    if not (is_whole and equation.outvars[0] is after and name in ('add', 'sub')):
      continue
    if given[0] is before and isinstance(given[1], Literal):
      return int(given[1].val) * (1 if name == 'add' else -1)
    if name == 'add' and given[1] is before and isinstance(given[0], Literal):
      return int(given[0].val)
  return None


def _where(equation: JaxprEqn) -> str:
  """Returns the line of code that an equation comes from."""
  traceback = equation.source_info.traceback
  for frame in traceback.frames if traceback else ():
    if not frame.file_name.startswith((*OWN_CODE, '<')):
      return f' ({os.path.basename(frame.file_name)}:{frame.line_num})'
  return ''
