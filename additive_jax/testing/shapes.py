"""Clauses of the contract about a model's shapes: the stream, the pool, inner gates, the space.

All but the values of the pool are found by tracing, which computes nothing.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from additive_jax.models.additive import gate_names
from additive_jax.models.costs import measure
from additive_jax.run.objectives import classification, language
from additive_jax.testing.contract import Case, Part, compiled, reason, sentence, site_part

LABELLED = (classification, language)  # objectives whose targets are numbers of outputs


def parts_fit_at_init(case: Case) -> bool:
  """When they create their parameters, embed gives a float stream [B, ..., D], every site takes the
  stream that reaches it, and one with a residual gate keeps its shape and dtype."""

  def create(part, key, value):
    return case.model.init_with_output(key, value, method=part.method)[0]

  case.streams, _ = _walk(case, len(case.x), create, jax.random.key(case.seed))
  return not case.violations


def has_one_pool(case: Case) -> bool:
  """init gives the same parameters, and nothing else, whatever structure it is called with."""
  structures = case.sample()
  chosen = list(dict.fromkeys([None, structures[0], structures[len(structures) // 2]]))
  called = ['no structure' if s is None else f'structure {s}' for s in chosen]

  def init(structure, key):
    arguments = (case.x,) if structure is None else (case.x, structure)
    return case.model.init(key, *arguments)

  key = jax.random.key(case.seed)
  inits = [jax.jit(functools.partial(init, structure)) for structure in chosen]
  pools = []
  for function, name in zip(inits, called):
    try:
      variables = jax.eval_shape(function, key)
    except Exception as error:
      case.violations.append(f'init with {name} fails: {reason(error)}.')
      return False
    for collection in sorted(set(variables) - {'params'}):
      case.violations.append(
        f'It has a collection {collection!r} beside the parameters: the pool must be parameters '
        'alone (in place of BatchNorm take LayerNorm, GroupNorm or RMSNorm).'
      )
    pools.append(_leaves(variables.get('params', {})))
    case.violations += _differences(pools[0], pools[-1], name)
    if case.violations:
      return False
  try:
    # One program, so that random numbers which are the same are drawn once.
    values = jax.device_get(compiled(lambda key: [function(key) for function in inits])(key))
  except Exception as error:
    case.violations.append(f'init fails when compiled: {reason(error)}.')
    return False
  case.variables = {'params': values[0].get('params', {})}
  reference = _leaves(case.variables['params'])
  for name, variables in zip(called, values):
    if not case.violations:
      case.violations += _differences(reference, _leaves(variables.get('params', {})), name)
  return not case.violations


def parts_take_any_batch(case: Case) -> bool:
  """The same for every part as a pure function of the pool, for the batch, for one example and for
  twice the batch; and the objective can judge what readout gives."""
  run = functools.partial(Part.run, model=case.model)
  for rows in (len(case.x), 1, 2 * len(case.x)):
    _, outputs = _walk(case, rows, run, case.variables)
    if rows == len(case.x) and not case.violations:
      _judge(case, outputs)
    if case.violations:
      return False
  return True


def inner_gates_take_every_form(case: Case) -> bool:
  """A site that names its gates takes values for the inner ones as Python bools, bool scalars,
  float scalars and floats [B]; its result has the same shape, and it creates no other parameters.
  """
  for i, (site, stream) in enumerate(zip(case.sites, case.streams)):
    if site.num_inner and (wrong := _wrong_form(case, i, stream)):
      case.violations.append(f'Site {site.label!r} {wrong}.')
  return not case.violations


def _wrong_form(case, index, stream):
  """What is wrong with a site for some values of its inner gates; None if nothing is."""
  site, rows = case.sites[index], len(case.x)
  pool = _leaves(case.variables['params'])
  off = (False,) * site.num_inner
  static = [
    (True,) * site.num_inner,
    off,
    *((*off[:k], True, *off[k + 1 :]) for k in range(len(off))),
  ]
  on = None
  for inner in dict.fromkeys(static):
    text = ''.join('01'[value] for value in inner)

    def create(key, h, inner=inner):
      return case.model.init_with_output(key, h, method=site_part(site, index, inner).method)

    out, created, failed = None, {}, None
    try:
      out, created = jax.eval_shape(create, jax.random.key(case.seed), stream)
    except Exception as error:
      failed = error
    if wrong := _wrong_result(f'Python bools, {text}', out, on, failed):
      return wrong
    on = out if on is None else on
    own = _leaves(created.get('params', {}))
    other = [p for p in sorted(own) if p not in pool or _differ(own[p], pool[p])]
    if other:
      return (
        f'creates other parameters with inner gates {text} than with all of them on ({other[0]}): '
        'inner gates must not change which parameters exist'
      )
  traced = {
    'bool scalars': ((), bool),
    'float scalars': ((), np.float32),
    f'floats [{rows}], one per example': ((rows,), np.float32),
  }
  for name, (shape, dtype) in traced.items():
    values = tuple(jax.ShapeDtypeStruct(shape, dtype) for _ in off)

    def run(variables, h, values):
      return site_part(site, index, values).run(variables, h, model=case.model)

    out, failed = None, None
    try:
      out = jax.eval_shape(run, case.variables, stream, values)
    except Exception as error:
      failed = error
    if wrong := _wrong_result(name, out, on, failed):
      return wrong
  return None


def _wrong_result(form, out, on, failed):
  """What is wrong with what a site gave for inner gates in some form, `on` being what it gives with
  all of them on."""
  if failed is not None:
    return f'fails, called as site(h, gates) with its inner gates as {form}: {reason(failed)}'
  if on is not None and _described(out) != _described(on):
    return (
      f'gives {_described(out)} with its inner gates as {form}, but {_described(on)} with all of '
      'them on: expected the same shape and dtype'
    )
  return None


def space_matches(case: Case) -> bool:
  """`space` names the gates in order, and the cost of every part can be found."""
  names = gate_names(case.model)
  try:
    found = case.model.space.names
    if found != names:
      case.violations.append(
        f'space names the gates {found}, but the sites in order are {names}: leave space as '
        'additive_jax.Additive has it.'
      )
    measure(case.model, case.x)
  except Exception as error:
    case.violations.append(f'Its space or its costs cannot be found: {reason(error)}.')
  return True


def _walk(case, rows, run, first):
  """Passes the shapes of a batch through every part by `run(part, first, value)`, and reports what
  does not fit.

  Returns:
    The stream before each site and after the last, and the outputs; ((), None) where they cannot be
    followed to the end.
  """
  value = jax.ShapeDtypeStruct((rows, *case.x.shape[1:]), case.x.dtype)
  streams = []
  for part in case.parts:
    out = None
    try:
      out = jax.eval_shape(functools.partial(run, part), first, value)
      wrong = _wrong_output(part, value, out)
    except Exception as error:
      form = '' if part.site is None or part.site.adds else ', called as site(h, gates)'
      wrong = f'{part.name} fails on a batch of {rows}{form}: {reason(error)}.'
    if wrong:
      case.violations.append(sentence(wrong))
    keeps = part.site is not None and part.site.has_residual
    if wrong and not keeps:
      return (), None  # nobody knows the stream that reaches the next part
    value = value if keeps else out
    streams.append(value)
  return tuple(streams[:-1]), value


def _wrong_output(part: Part, value, out):
  """What is wrong with the shape or dtype that a part gives; None if nothing is."""
  site = part.site
  if not hasattr(out, 'shape'):
    what = 'the value that its + adds' if site is not None and site.adds else 'its result'
    return f'{part.name} gives a {type(out).__name__}: expected {what}, one array [B, ...].'
  if out.shape[:1] != value.shape[:1]:
    return f'{part.name} gives {out.shape} for a batch of {value.shape[0]}: expected [B, ...].'
  if part.name == 'readout':
    return None
  if site is None or not site.has_residual:
    if not jnp.issubdtype(out.dtype, jnp.floating):
      return f'the stream that {part.name} gives is {out.dtype}: expected floats.'
    return None
  if out.shape != value.shape:
    return (
      f'{part.name} maps a stream of shape {value.shape} to {out.shape}: a gated + needs the same '
      'shape (only a site without a residual gate may change the stream).'
    )
  dtype = jnp.promote_types(out.dtype, value.dtype) if site.adds else out.dtype
  if dtype != value.dtype:
    return (
      f'{part.name} gives {out.dtype}, which turns the {value.dtype} stream into another dtype: '
      'cast its result to the dtype of its input.'
    )
  return None


def _described(out):
  return f'{out.dtype} {out.shape}' if hasattr(out, 'shape') else f'a {type(out).__name__}'


def _judge(case, outputs):
  """Reports targets that the objective cannot compare with outputs of this shape."""
  try:
    loss, accuracy = jax.eval_shape(case.objective, outputs, case.y)
    fits = loss.shape == accuracy.shape == (len(case.x),)
    why = f'it gives {loss.shape} and {accuracy.shape}, expected one number per example'
  except Exception as error:
    fits, why = False, reason(error)
  if not fits:
    case.violations.append(
      f'The objective cannot judge outputs of shape {outputs.shape} by targets of shape '
      f'{case.y.shape}: {why}.'
    )
  elif case.objective in LABELLED:
    _check_labels(case, outputs.shape[-1])


def _check_labels(case, num_outputs):
  y = case.targets
  if not np.issubdtype(y.dtype, np.integer):
    case.violations.append(
      f'The targets are {y.dtype}: expected integers, the numbers of the right outputs.'
    )
  elif y.min() < 0 or y.max() >= num_outputs:
    case.violations.append(
      f'The targets run from {y.min()} to {y.max()}, but readout gives {num_outputs} outputs: '
      f'expected targets from 0 to {num_outputs - 1}.'
    )


def _leaves(tree):
  return {
    jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _differ(a, b):
  return a.shape != b.shape or a.dtype != b.dtype


def _differences(reference, leaves, called):
  """How the pool that init gives with a structure differs from the one it gives with none."""
  pools = f'The pool that init gives with {called} is not the one it gives with none: '
  remedy = '; create every site at init, on or off, with explicit names.'
  missing = sorted(set(reference) ^ set(leaves))
  if missing:
    return [f'{pools}only one of them has {missing[0]} ({len(missing)} such leaves){remedy}']
  for path, leaf in reference.items():
    if _differ(leaf, leaves[path]):
      return [f'{pools}{path} has shape {leaf.shape} and {leaves[path].shape}{remedy}']
    values = isinstance(leaf, np.ndarray)
    if values and not np.array_equal(leaf, leaves[path]):
      return [f'{pools}{path} has other values{remedy}']
  return []
