"""Clauses of the contract about a model's shapes: the stream, the pool, inner gates, the space.

All but the values of the pool are found by tracing, which computes nothing.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from additive_jax.batches import is_array, named_leaves, num_examples, shapes_of
from additive_jax.models.additive import gate_names
from additive_jax.models.batch_norm import BATCH_STATS, has_statistics
from additive_jax.models.contract import reason
from additive_jax.models.costs import measure
from additive_jax.models.side import WithSide, stream_of, with_stream
from additive_jax.run.objectives import is_soft
from additive_jax.run.tasks import LABELLED
from additive_jax.testing.case import Case, Part, compiled, leaves_by_path, site_part


def parts_fit_at_init(case: Case) -> bool:
  """Checks that parts fit when they create their parameters: embed gives a float stream
  [B, ..., D], every site takes the stream that reaches it, and one with a residual gate keeps its
  shape and dtype."""

  def create(part, key, value):
    return case.model.init_with_output(key, value, method=part.method)[0]

  case.streams, _ = _walk(case, case.num_examples, create, jax.random.key(case.seed))
  return not case.violations


def has_one_pool(case: Case) -> bool:
  """Checks that init gives the same parameters, and nothing else, whatever structure it is called
  with."""
  sample = case.sample()
  structures = list(dict.fromkeys([None, sample[0], sample[len(sample) // 2]]))
  calls = ['no structure' if s is None else f'structure {s}' for s in structures]

  def init(structure, key):
    arguments = (case.x,) if structure is None else (case.x, structure)
    return case.model.init(key, *arguments)

  key = jax.random.key(case.seed)
  inits = [jax.jit(functools.partial(init, structure)) for structure in structures]
  reference = None
  for function, call in zip(inits, calls):
    try:
      shapes = jax.eval_shape(function, key)
    except Exception as error:
      return case.fail(f'init with {call} fails: {reason(error)}.')
    for collection in sorted(set(shapes) - {'params', BATCH_STATS}):
      case.fail(
        f'It has a collection {collection!r} beside the parameters: expected parameters, and the '
        f'{BATCH_STATS} of BatchNorms, alone.'
      )
    leaves = leaves_by_path(shapes.get('params', {}))
    reference = leaves if reference is None else reference
    case.violations += _differences(reference, leaves, call)
    if case.violations:
      return False
  try:
    # One program, so that random numbers which are the same are drawn once.
    few = inits[:1] if case.quick else inits
    pools = jax.device_get(compiled(lambda key: [function(key) for function in few])(key))
  except Exception as error:
    return case.fail(f'init fails when compiled: {reason(error)}.')
  reference, *others = [leaves_by_path(pool.get('params', {})) for pool in pools]
  case.variables = {'params': {}, **pools[0]}
  if has_statistics(case.variables):
    case.notes.append(
      'It has BatchNorms: a structure other than all-on is judged by statistics of its own '
      '(additive_jax.recalibrate, or evaluate_structures(recalibrate=...)).'
    )
  for call, leaves in zip(calls[1:], others):
    if not case.violations:
      case.violations += _differences(reference, leaves, call)
  return not case.violations


def parts_take_any_batch(case: Case) -> bool:
  """Checks what `parts_fit_at_init` does of every part as a pure function of the pool, for the
  batch, for one example and for twice the batch; and that the task's loss can judge what readout
  gives."""
  run = functools.partial(Part.run, model=case.model)
  for rows in (case.num_examples, 1, 2 * case.num_examples):
    _, outputs = _walk(case, rows, run, case.variables)
    if rows == case.num_examples and not case.violations:
      _judge(case, outputs)
    if case.violations:
      return False
  return True


def inner_gates_take_every_form(case: Case) -> bool:
  """Checks that a site that names its gates takes values for the inner ones as Python bools, bool
  scalars, float scalars and floats [B]; its result has the same shape, and it creates no other
  parameters."""
  for index, site in enumerate(case.sites):
    if site.num_inner and (wrong := _wrong_static(case, index) or _wrong_traced(case, index)):
      case.fail(f'Site {site.label!r} {wrong}.')
  return not case.violations


def space_matches(case: Case) -> bool:
  """Checks that `space` names the gates in order, and that the cost of every part can be found."""
  names = gate_names(case.model)
  try:
    space_names = case.model.space.names
    if space_names != names:
      case.fail(
        f'space names the gates {space_names}, but the sites in order are {names}: leave space as '
        'additive_jax.Additive has it.'
      )
    measure(case.model, case.x)
  except Exception as error:
    case.fail(f'Its space or its costs cannot be found: {reason(error)}.')
  return True


def _create(case: Case, index: int, inner):
  """Returns what site `index` gives when it creates its parameters, and these; both as shapes."""
  method = site_part(case.sites[index], index, inner).method
  create = lambda key, h: case.model.init_with_output(key, h, method=method)
  return jax.eval_shape(create, jax.random.key(case.seed), case.streams[index])


def _wrong_static(case: Case, index: int) -> str | None:
  """Returns what is wrong with a site for inner gates all on, all off, or one on, as Python bools;
  None if nothing is."""
  count = case.sites[index].num_inner
  pool = leaves_by_path(case.variables['params'])
  one_on = [tuple(k == i for i in range(count)) for k in range(count)]
  all_on = None
  for inner in dict.fromkeys([(True,) * count, (False,) * count, *one_on]):
    text = ''.join('01'[value] for value in inner)
    try:
      result, created = _create(case, index, inner)
    except Exception as error:
      return _failure(f'Python bools, {text}', error)
    all_on = result if all_on is None else all_on
    if _described(result) != _described(all_on):
      return _other_result(f'Python bools, {text}', result, all_on)
    for path, leaf in sorted(leaves_by_path(created.get('params', {})).items()):
      if path not in pool or _differ(leaf, pool[path]):
        return (
          f'creates other parameters with inner gates {text} than with all of them on ({path}): '
          'inner gates must not change which parameters exist'
        )
  return None


def _wrong_traced(case: Case, index: int) -> str | None:
  """Returns what is wrong with a site for inner gates that are arrays; None if nothing is."""
  site, rows = case.sites[index], case.num_examples
  all_on, _ = _create(case, index, ())
  for form, shape, dtype in (
    ('bool scalars', (), bool),
    ('float scalars', (), np.float32),
    (f'floats [{rows}], one per example', (rows,), np.float32),
  ):
    values = (jax.ShapeDtypeStruct(shape, dtype),) * site.num_inner
    run = lambda variables, h, values: site_part(site, index, values).run(
      variables, h, model=case.model
    )
    try:
      result = jax.eval_shape(run, case.variables, case.streams[index], values)
    except Exception as error:
      return _failure(form, error)
    if _described(result) != _described(all_on):
      return _other_result(form, result, all_on)
  return None


def _failure(form, error):
  return f'fails, called as site(h, gates) with its inner gates as {form}: {reason(error)}'


def _other_result(form, result, all_on):
  return (
    f'gives {_described(result)} with its inner gates as {form}, but {_described(all_on)} with all '
    'of them on: expected the same shape and dtype'
  )


def _walk(case: Case, rows: int, run, first):
  """Passes the shapes of a batch through every part by `run(part, first, value)`, and notes what
  does not fit.

  Returns:
    The stream before each site and after the last, and the outputs; ((), None) where they cannot be
    followed to the end.
  """
  value = shapes_of(case.x, rows)
  streams = []
  for part in case.parts:
    result = None
    try:
      result = jax.eval_shape(functools.partial(run, part), first, value)
      wrong = _wrong_output(part, value, result)
    except Exception as error:
      form = '' if part.site is None or part.site.adds else ', called as site(h, gates)'
      wrong = f'{part.title} fails on a batch of {rows}{form}: {reason(error)}.'
    if wrong:
      case.fail(wrong)
      if not part.keeps_stream:
        return (), None  # nobody knows the stream that reaches the next part
    if not part.keeps_stream:
      value = with_stream(value, result) if part.site is not None else result
    streams.append(value)
  return tuple(streams[:-1]), value


def _wrong_output(part: Part, value, result) -> str | None:
  """Returns what is wrong with the shape or dtype of a part's result; None if nothing is."""
  site = part.site
  if part.name == 'embed' and isinstance(result, WithSide):
    for place, leaf in named_leaves(result.side, 'side'):
      if getattr(leaf, 'shape', ())[:1] != (num_examples(value),):
        return f'Embed gives a {place} of shape {np.shape(leaf)}: expected [B, ...].'
    result = result.h
  elif site is not None:
    value = stream_of(value)
  if not hasattr(result, 'shape'):
    role = 'the value that its + adds' if site is not None and site.adds else 'its result'
    return f'{part.title} gives a {type(result).__name__}: expected {role}, one array [B, ...].'
  if result.shape[:1] != (num_examples(value),):
    return (
      f'{part.title} gives {result.shape} for a batch of {num_examples(value)}: expected [B, ...].'
    )
  if part.name == 'readout':
    return None
  if site is None or not site.has_residual:
    if not jnp.issubdtype(result.dtype, jnp.floating):
      return f'The stream that {part.name} gives is {result.dtype}: expected floats.'
    return None
  if result.shape != value.shape:
    return (
      f'{part.title} maps a stream of shape {value.shape} to {result.shape}: a gated + needs the '
      'same shape (only a site without a residual gate may change the stream).'
    )
  dtype = jnp.promote_types(result.dtype, value.dtype) if site.adds else result.dtype
  if dtype != value.dtype:
    return (
      f'{part.title} gives {result.dtype}, which turns the {value.dtype} stream into another '
      'dtype: cast its result to the dtype of its input.'
    )
  return None


def _judge(case: Case, outputs) -> None:
  """Notes targets that the task's loss cannot compare with outputs of this shape."""
  task = case.task
  try:
    jax.eval_shape(task.losses, outputs, case.y)
    why = ''
  except Exception as error:
    why = reason(error)
  targets = task.clean(case.targets)
  is_labels = task.name in LABELLED and is_array(targets) and not is_soft(targets)
  if why:
    case.fail(
      f'The loss cannot judge outputs of shape {outputs.shape} by targets of shape '
      f'{jax.tree.map(np.shape, case.y)}: {why}.'
    )
  elif is_labels and not np.issubdtype(targets.dtype, np.integer):
    case.fail(
      f'The targets are {targets.dtype}: expected integers, the numbers of the right outputs.'
    )
  elif is_labels and not 0 <= targets.min() <= targets.max() < outputs.shape[-1]:
    case.fail(
      f'The targets run from {targets.min()} to {targets.max()}, but readout gives '
      f'{outputs.shape[-1]} outputs: expected targets from 0 to {outputs.shape[-1] - 1}.'
    )


def _described(result) -> str:
  is_array = hasattr(result, 'shape')
  return f'{result.dtype} {result.shape}' if is_array else f'a {type(result).__name__}'


def _differ(a, b) -> bool:
  return a.shape != b.shape or a.dtype != b.dtype


def _differences(reference, leaves, call: str) -> list[str]:
  """Returns how the pool that init gives with a structure differs from the one of no structure."""
  pools = f'The pool that init gives with {call} is not the one it gives with none: '
  remedy = '; create every site at init, on or off, with explicit names.'
  missing = sorted(set(reference) ^ set(leaves))
  if missing:
    return [f'{pools}only one of them has {missing[0]} ({len(missing)} such leaves){remedy}']
  for path, leaf in reference.items():
    if _differ(leaf, leaves[path]):
      return [f'{pools}{path} has shape {leaf.shape} and {leaves[path].shape}{remedy}']
    if isinstance(leaf, np.ndarray) and not np.array_equal(leaf, leaves[path]):
      return [f'{pools}{path} has other values{remedy}']
  return []
