"""What a network and its pool have to be wherever they enter, checked by shapes alone.

Ways to run that skip a site take the stream as it was, so a residual gate needs the same shape and
dtype on both sides; and structures share parameters and nothing else. `testing.check_model` checks
this and what only numbers show.
"""

from __future__ import annotations

import functools

import flax.core
import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from additive_jax.batches import Shapes, cached, named_leaves, num_examples, shapes_of
from additive_jax.errors import UserError
from additive_jax.files.kept import kept
from additive_jax.gates.structure import Structure
from additive_jax.models.additive import Inputs, check_variables, initial_shapes, shape_of, sites_of
from additive_jax.models.batch_norm import ADVICE, BATCH_STATS, is_of_batch, of_stored
from additive_jax.models.reads import read_by, statistics_read_by
from additive_jax.models.side import WithSide, call_part, stream_of, with_stream
from additive_jax.models.surrounding import PLAIN, in_mode, is_surrounded

DECIDES_ON_VALUES = (
  jax.errors.ConcretizationTypeError,
  jax.errors.TracerArrayConversionError,
  jax.errors.TracerIntegerConversionError,
)
# What Flax and JAX raise where a part is no pure function of its parameters and its input.
IMPURE = (
  flax.errors.InvalidRngError,
  flax.errors.ModifyScopeVariableError,
  flax.errors.ScopeParamNotFoundError,
  flax.errors.ScopeCollectionNotFound,
  *DECIDES_ON_VALUES,
)


def reason(error: BaseException) -> str:
  """Returns why a model's code failed, in words, with the first line of the error itself.

  >>> reason(ValueError('no such width\\nand more'))
  'ValueError: no such width'
  """
  first = (str(error).strip().splitlines() or [''])[0]
  first = first.split(' (https://')[0][:200].rstrip('.')
  text = f'{type(error).__name__}: {first}'
  if isinstance(error, flax.errors.InvalidRngError):
    without = "aj.models.Dropout, or deterministic=not self.has_rng('dropout')"
    return f'it draws random numbers, but must be deterministic without a key ({without}); {text}'
  if isinstance(error, flax.errors.ModifyScopeVariableError):
    if BATCH_STATS in str(error):
      return f'it changes stored statistics when it is judged: expected {ADVICE}; {text}'
    return f'it changes a variable, but must be a pure function of the parameters; {text}'
  if isinstance(error, flax.errors.ScopeParamNotFoundError | flax.errors.ScopeCollectionNotFound):
    return f'it reads what init did not create, so create every site at init; {text}'
  if isinstance(error, DECIDES_ON_VALUES):
    return (
      'it takes a Python decision on, or a NumPy copy of, the values of an array, which compiled '
      f'code cannot: use jnp.where or jax.lax.cond; {text}'
    )
  return text


def check_pool(
  model: nn.Module,
  variables: PyTree,
  x: Inputs | Shapes,
  structure: Structure | None = None,
) -> None:
  """Checks that a pool is one of the model, and that the model's parts fit each other with it.

  Takes microseconds once it has passed for a model and these shapes; in a compiled program it is
  part of tracing. Where devices hold the pool in pieces (`models.surrounding`), it was checked
  before it was cut.

  Args:
    model: an additive model.
    variables: `{'params': pool}`, of arrays or shapes.
    x: inputs [B, ...], or a pytree of them, of which the shape and dtype matter.
    structure: the only one that is run; the pool may lack what is read by sites that are off.

  Raises:
    UserError: for variables that are no pool of this model, a residual site that changes the shape
      or dtype of the stream, state beside the parameters, or parts that draw random numbers.

  >>> model, x = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3), jnp.ones((5, 6))
  >>> check_pool(model, jax.eval_shape(model.clone(hidden=9).init, jax.random.key(0), x), x)
  Traceback (most recent call last):
  additive_jax.errors.UserError: a pool for MLP on inputs (5, 6) with block_00/in/bias of shape
  (9,), not (8,) and 2 more: expected a pool of this model, as model.init gives it
  """
  if is_surrounded():
    return
  off = None if structure is None or all(structure) else structure
  stored = None if is_of_batch() else _described(variables, BATCH_STATS)
  with in_mode(PLAIN), of_stored():
    _checked_with(model, *_described(variables), _inputs(x), _floats(), off)
    if stored is not None:
      _check_statistics(model, *stored, _inputs(x), _floats(), off)


@cached(maxsize=4096)
def _checked_with(model, form, leaves, inputs, floats, structure) -> None:
  """As `_checked`; of a structure with sites that are off, the pool may lack what these read."""
  try:
    _checked(model, form, leaves, inputs, floats)
  except UserError:
    if structure is None:
      raise
    params = jax.tree.unflatten(form, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
    filled = _filled(model, {'params': params}, inputs, structure)
    _checked(model, *_described(filled), inputs, floats)


@cached(maxsize=4096)
def _check_statistics(model, form, leaves, inputs, floats, structure) -> None:
  """Raises `UserError` for stored statistics that are not those of the model; of a structure with
  sites that are off, those may be missing that only these read."""
  given = jax.tree.unflatten(form, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
  wanted = _pool(model, inputs, floats).get(BATCH_STATS, {})
  if structure is not None and wanted:
    needed = statistics_read_by(model, inputs, structure)
    spare = {path: leaf for path, leaf in flatten_dict(wanted).items() if path not in needed}
    given = unflatten_dict(spare | flatten_dict(given))
  if wrong := differences(given, wanted):
    raise UserError(
      f'{BATCH_STATS} of {type(model).__name__} with {wrong}: expected the statistics of its '
      "BatchNorms in the variables, {'params': pool, 'batch_stats': statistics}, as model.init, a "
      'trainer or additive_jax.recalibrate gives them'
    )


def statistics_of(model: nn.Module, x: Inputs | jax.ShapeDtypeStruct) -> PyTree:
  """Returns the shapes of the stored statistics of a model's BatchNorms; {} where it has none.

  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> statistics_of(model, jnp.ones((5, 6)))
  {}
  """
  with in_mode(PLAIN), of_stored():
    return _pool(model, _inputs(x), _floats()).get(BATCH_STATS, {})


def _filled(model, variables, inputs, structure):
  """Returns variables with shapes in place of missing leaves that only sites that are off read."""
  needed, pool = read_by(model, inputs, structure), _pool(model, inputs, _floats())['params']
  spare = {path: leaf for path, leaf in flatten_dict(pool).items() if path not in needed}
  return {'params': unflatten_dict(spare | flatten_dict(variables['params']))}


def check_network(model: nn.Module, x: Inputs | Shapes) -> jax.ShapeDtypeStruct:
  """Returns the shape and dtype of the outputs, and checks the model with a pool of its own.

  Args and errors are those of `check_pool`.

  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> check_network(model, jnp.ones((5, 6))).shape
  (5, 3)
  """
  sites_of(model)
  return _network(model, _inputs(x))


@kept(lambda shape: [shape.shape, str(shape.dtype)], lambda kept: jax.ShapeDtypeStruct(*kept))
def _network(model, inputs):
  """Returns the shape of the outputs of a model with a pool of its own."""
  return _checked(model, *_described(_pool(model, inputs, _floats())), inputs, _floats())


def _floats():
  """Returns JAX's default floats, which `jax_enable_x64` widens: what was traced with others does
  not count."""
  return jax.dtypes.canonicalize_dtype(float)


def _inputs(x) -> Shapes:
  """Returns the shape of inputs, and their dtype as JAX takes it."""
  leaves = named_leaves(x)
  for name, leaf in leaves or [('', x)]:
    is_array = hasattr(leaf, 'dtype') and any(
      jnp.issubdtype(leaf.dtype, kind) for kind in (np.number, bool)
    )
    if not is_array or not leaf.shape:
      given = f'{leaf.dtype} {leaf.shape}' if hasattr(leaf, 'dtype') else type(leaf).__name__
      raise UserError(f'inputs{name} that are {given}: expected an array of numbers [B, ...]')
  if len({leaf.shape[0] for _, leaf in leaves}) > 1:
    shapes = ' and '.join(f'{name} of shape {leaf.shape}' for name, leaf in leaves)
    raise UserError(f'inputs {shapes}: expected as many examples of each')
  return shape_of(x)


def _sizes_of(inputs: Shapes) -> str:
  """Returns the shapes of inputs in words: of one array its own."""
  return str(jax.tree.map(lambda leaf: leaf.shape, inputs))


def _described(variables, collection='params'):
  """Returns the form of a pool as a tree, and the shape and dtype of each leaf."""
  check_variables(variables)
  leaves, form = jax.tree.flatten(flax.core.unfreeze(variables.get(collection, {})))
  leaves = [leaf if hasattr(leaf, 'dtype') else np.asarray(leaf) for leaf in leaves]
  return form, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


@cached(maxsize=256)
def _pool(model, inputs, floats):
  """Returns the shapes of `{'params': pool}` that init gives."""
  key = jax.random.key(0)
  made = lambda method: lambda k, v: model.init_with_output(k, v, method=method)[0]
  create = lambda method, value: jax.eval_shape(made(method), key, value)
  try:
    variables = initial_shapes(model, shapes_of(inputs, 1))  # traced once for batches of all sizes
  except Exception as error:
    if 'use_running_average' in str(error):
      raise UserError(
        f'{type(model).__name__} has a BatchNorm that is not told when to use stored statistics: '
        f'expected {ADVICE}'
      ) from error
    _outputs(model, inputs, create)  # says which part does not fit, if that is why
    variables = jax.eval_shape(model.init, key, inputs)  # may take this batch alone
  for collection in sorted(set(variables) - {'params', BATCH_STATS}):
    raise UserError(
      f'{type(model).__name__} has a collection {collection!r} beside its parameters: expected '
      f'parameters, which structures share, and the {BATCH_STATS} of BatchNorms alone'
    )
  return variables


@cached(maxsize=256)
def _checked(model, form, leaves, inputs, floats):
  """Returns the shape of the outputs, once everything fits."""
  params = jax.tree.unflatten(form, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
  pool = _pool(model, inputs, floats)
  wanted = pool.get('params', {})
  stored = {BATCH_STATS: pool[BATCH_STATS]} if BATCH_STATS in pool else {}
  if wrong := differences(params, wanted):
    raise UserError(
      f'a pool for {type(model).__name__} on inputs {_sizes_of(inputs)} with {wrong}: '
      'expected a pool of this model, as model.init gives it'
    )

  def run(method, value):
    apply = lambda variables, value: model.apply(variables, value, method=method)
    return jax.eval_shape(apply, {'params': params, **stored}, value)

  return _outputs(model, inputs, run)


def _outputs(model, inputs, run):
  """Returns the shape of what a model gives, by the shape of what each part gives.

  Args:
    run: from a method of the module and a shape to a shape.
  """
  name, alike = type(model).__name__, getattr(model, 'alike', range(0))
  h = _embedded(name, inputs, run)
  for i, site in enumerate(sites_of(model)):
    if i in alike[1:]:  # gives what the first of these gave, see `models.alike`
      continue
    inner = () if site.adds else ((True,) * site.num_inner,)
    method = lambda module, h, i=i, inner=inner: call_part(module.sites[i], h, *inner)
    after = _result(f'{name}: site {site.label!r}', lambda m=method, h=h: run(m, h))
    before = stream_of(h)
    after = _sum(before, after) if site.adds else after
    if site.has_residual and (after.shape, after.dtype) != (before.shape, before.dtype):
      raise UserError(
        f'{name}: site {site.label!r} turns a stream of {before.dtype} {before.shape} into '
        f'{after.dtype} {after.shape}: expected the same shape and dtype, since a residual gate '
        'that is off leaves the stream as it was'
      )
    h = with_stream(h, jax.ShapeDtypeStruct(after.shape, after.dtype))
  last = lambda: run(lambda module, h: call_part(module.readout, h), h)
  return _result(f'{name}: readout', last, inputs)


def _embedded(name, inputs, run):
  """Returns the shape of the stream, with that of its side if it has one."""
  made = []  # one call, of which the stream and each array of the side are looked at

  def stream():
    made.append(run(lambda module, x: module.embed(x), inputs))
    return stream_of(made[0])

  _result(f'{name}: embed', stream, inputs)
  side = made[0].side if isinstance(made[0], WithSide) else ()
  for place, leaf in named_leaves(side):
    _result(f'{name}: side{place} of embed', lambda leaf=leaf: leaf, inputs)
  return made[0]


def _result(part, call, inputs=None):
  """Returns the shape of what a part gives, which is one array, with the rows of `inputs` if they
  are given. What shows that it is not pure becomes a `UserError`; other errors of its code stay."""
  try:
    result = call()
  except IMPURE as error:
    raise UserError(f'{part} fails: {reason(error)}') from error
  rows = None if inputs is None else (num_examples(inputs),)
  if not hasattr(result, 'shape') or rows not in (None, result.shape[:1]):
    given = result.shape if hasattr(result, 'shape') else f'a {type(result).__name__}'
    shape = '' if rows is None else f' [{rows[0]}, ...], a row for each example'
    raise UserError(f'{part} gives {given}: expected one array{shape}')
  return result


def _sum(h, added):
  """Returns the shape of a stream plus what a site adds; where they do not fit, of the latter."""
  try:
    return jax.eval_shape(jnp.add, h, added)
  except (TypeError, ValueError):
    return added


def differences(given: PyTree, wanted: PyTree) -> str:
  """Returns what is missing in a tree of arrays, surplus or of another shape, in words; '' where
  nothing is.

  >>> differences({'a': jnp.ones(2), 'c': jnp.ones(1)}, {'a': jnp.ones(3), 'b': jnp.ones(1)})
  'no b; a surplus c; a of shape (2,), not (3,)'
  """
  if jax.tree.structure(given) == jax.tree.structure(wanted):
    pairs = zip(jax.tree.leaves(given), jax.tree.leaves(wanted))
    if all(np.shape(a) == np.shape(b) for a, b in pairs):
      return ''
  before, after = _shapes(given), _shapes(wanted)
  found = []
  for paths, text in (
    ([path for path in after if path not in before], 'no {0}{1}'),
    ([path for path in before if path not in after], 'a surplus {0}{1}'),
    ([p for p in before if p in after and before[p] != after[p]], '{0} of shape {2}, not {3}{1}'),
  ):
    if paths:
      first, more = paths[0], f' and {len(paths) - 1} more' if len(paths) > 1 else ''
      found.append(text.format(first, more, before.get(first), after.get(first)))
  return '; '.join(found) or f'the form {jax.tree.structure(given)}'[:200]


def _shapes(params) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each leaf by its path."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  name = functools.partial(jax.tree_util.keystr, simple=True, separator='/')
  return {name(path): np.shape(leaf) for path, leaf in leaves}
