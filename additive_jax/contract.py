"""Clauses of the contract about a model's form: fields, parts, pool, shapes, names."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from additive_jax.models.additive import (
  Additive,
  branch,
  embed,
  gate_names,
  measure,
  readout,
  sites_of,
)
from additive_jax.structure import Structure


@dataclasses.dataclass
class Case:
  """What is checked and what was found; each clause adds to it.

  Attributes:
    model, x, y, objective, max_structures, seed: what `testing.check_model` was given.
    violations, notes: sentences.
    variables: `{'params': pool}` at init, a NumPy copy.
    moved: the variables that runs are compared at, a step away from init.
    stream: shape and dtype of the stream [B, ..., D].
    independent: whether examples do not influence each other, as far as is known.
  """

  model: Any
  x: np.ndarray
  y: np.ndarray
  objective: Callable
  max_structures: int
  seed: int
  violations: list[str] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)
  variables: Any = None
  moved: Any = None
  stream: Any = None
  independent: bool = True

  @property
  def part_functions(self) -> dict[str, Callable]:
    """Each part as a function of variables and input or stream, by the name to call it in a
    sentence."""
    sites = {
      f'site {site.label!r}': functools.partial(_all_on, self.model, i)
      for i, site in enumerate(sites_of(self.model))
    }
    return {
      'embed': lambda v, x: embed(self.model, v, x),
      **sites,
      'readout': lambda v, h: readout(self.model, v, h),
    }

  def sample(self) -> list[Structure]:
    """The structures to compare: all if few, else all-on, all-off and a random sample."""
    num_gates = len(gate_names(self.model))
    if num_gates < 31 and 1 << num_gates <= self.max_structures:
      return [Structure.from_int(v, num_gates=num_gates) for v in range(1 << num_gates)]
    found = {Structure.all_on(num_gates), Structure((False,) * num_gates)}
    rng = np.random.default_rng(self.seed)
    while len(found) < self.max_structures:
      found.add(Structure(tuple(rng.random(num_gates) < 0.5)))
    return sorted(found, key=str)


def _all_on(model, index, variables, h):
  """What a site adds, or, for one that names its gates, the stream after it, with all of them on."""
  inner = (True,) * sites_of(model)[index].num_inner
  if sites_of(model)[index].adds:
    return branch(model, variables, index, h)
  return branch(model, variables, index, h, inner)


def sentence(text: str) -> str:
  """The text with its first letter as a capital."""
  return text[:1].upper() + text[1:]


def reason(error: Exception) -> str:
  """Why a model's code failed, in words, with the first line of the error itself."""
  first = (str(error).strip().splitlines() or [''])[0]
  first = first.split(' (https://')[0][:200].rstrip('.')
  said = f'{type(error).__name__}: {first}'
  if isinstance(error, flax.errors.InvalidRngError):
    return f'it draws random numbers, but must be deterministic (switch dropout off); {said}'
  if isinstance(error, flax.errors.ModifyScopeVariableError):
    return f'it changes a variable, but must be a pure function of the parameters; {said}'
  if isinstance(error, flax.errors.ScopeParamNotFoundError | flax.errors.ScopeCollectionNotFound):
    return f'it reads what init did not create, so create every site at init; {said}'
  if isinstance(
    error,
    jax.errors.ConcretizationTypeError
    | jax.errors.TracerArrayConversionError
    | jax.errors.TracerIntegerConversionError,
  ):
    return (
      'it takes a Python decision on, or a NumPy copy of, the values of an array, which compiled '
      f'code cannot: use jnp.where or jax.lax.cond; {said}'
    )
  return said


def is_usable_module(case: Case) -> bool:
  """An instance of a Flax Linen module with hashable fields."""
  model = case.model
  if isinstance(model, type):
    case.violations.append(f'{model.__name__} is a class: pass an instance, {model.__name__}(...).')
    return False
  if not isinstance(model, nn.Module):
    case.violations.append(
      f'It is a {type(model).__module__}.{type(model).__name__}, not a flax.linen.Module: write it '
      'as a subclass of additive_jax.Additive.'
    )
    return False
  for field in dataclasses.fields(model):
    value = getattr(model, field.name, None)
    try:
      if field.name not in ('parent', 'name'):
        hash(value)
    except TypeError:
      remedy = (
        'make it a tuple, where you construct the model or in __post_init__ before '
        'super().__post_init__()'
        if isinstance(value, list | set)
        else 'make it a tuple or another value with a hash'
      )
      case.violations.append(
        f'Field {field.name!r} is a {type(value).__name__}, which has no hash, so compiled '
        f'programs cannot be kept per model: {remedy}.'
      )
  return not case.violations


def has_its_parts(case: Case) -> bool:
  """embed, sites, readout, `__call__(x, structure)`, and a unique name for every gate."""
  model = case.model
  found = {}

  def read(module):
    for name in ('embed', 'sites', 'readout'):
      found[name] = getattr(module, name, None)
    sites = found['sites']
    if isinstance(sites, list | tuple):
      found['names'] = [site.name if isinstance(site, nn.Module) else None for site in sites]

  try:
    jax.eval_shape(lambda key: model.init(key, method=read), jax.random.key(case.seed))
  except Exception as error:
    case.violations.append(f'Its setup fails: {reason(error)}.')
    return False
  say = case.violations.append
  for name, what in (('embed', 'input to stream'), ('readout', 'stream to outputs')):
    if not callable(found[name]):
      say(
        f'It has no {name} ({what}): define a method {name}, or make it a submodule in setup (the '
        'parts of a module with @nn.compact cannot be called one by one).'
      )
  if found['sites'] is None:
    say('It has no sites: in setup, make self.sites a list of submodules, one per gate.')
  elif 'names' not in found:
    say(f'Its sites are a {type(found["sites"]).__name__}: expected a list of submodules.')
  elif not found['names']:
    say('Its list of sites is empty: expected at least one submodule.')
  for i, name in enumerate(found.get('names', ())):
    if name is None:
      kind = type(found['sites'][i]).__name__
      say(f'Site {i} is a {kind}: expected a flax.linen.Module made in setup, which has a name.')
    elif found['names'].index(name) < i:
      say(
        f'Sites {found["names"].index(name)} and {i} are both called {name!r}, so their gates '
        'could not be told apart: give every site a name of its own.'
      )
  if not isinstance(model, Additive):
    if not hasattr(type(model), 'space'):
      say('It has no space: subclass additive_jax.Additive, which provides it.')
    positional = [
      p
      for p in inspect.signature(type(model).__call__).parameters.values()
      if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if len(positional) < 3 and not any(p.kind is p.VAR_POSITIONAL for p in positional):
      say(
        'Its __call__ takes no structure: subclass additive_jax.Additive, which provides '
        '__call__(x, structure).'
      )
  return not case.violations


def has_one_pool(case: Case) -> bool:
  """init gives the same parameters, and nothing else, whatever structure it is called with."""
  key = jax.random.key(case.seed)
  reference = None
  structures = case.sample()
  for structure in (None, structures[0], structures[-1], *structures[1:-1][:2]):
    arguments = (case.x,) if structure is None else (case.x, structure)
    called = 'no structure' if structure is None else f'structure {structure}'
    try:
      variables = case.model.init(key, *arguments)
    except Exception as error:
      case.violations.append(f'init with {called} fails: {reason(error)}.')
      return False
    leaves = {
      jax.tree_util.keystr(path): np.asarray(leaf)
      for path, leaf in jax.tree_util.tree_leaves_with_path(variables.get('params', {}))
    }
    if reference is None:
      reference, case.variables = leaves, {'params': jax.tree.map(np.asarray, variables['params'])}
      for collection in sorted(set(variables) - {'params'}):
        case.violations.append(
          f'It has a collection {collection!r} beside the parameters: the pool must be parameters '
          'alone (in place of BatchNorm take LayerNorm, GroupNorm or RMSNorm).'
        )
      continue
    case.violations += _differences(reference, leaves, called)
    if case.violations:
      break
  return not case.violations


def _differences(reference, leaves, called):
  pools = f'The pool that init gives with {called} is not the one it gives with none: '
  remedy = '; create every site at init, on or off, with explicit names.'
  missing = sorted(set(reference) ^ set(leaves))
  if missing:
    return [f'{pools}only one of them has {missing[0]} ({len(missing)} such leaves){remedy}']
  for path, leaf in reference.items():
    if leaf.shape != leaves[path].shape or leaf.dtype != leaves[path].dtype:
      return [f'{pools}{path} has shape {leaf.shape} and {leaves[path].shape}{remedy}']
    if not np.array_equal(leaf, leaves[path]):
      return [f'{pools}{path} has other values{remedy}']
  return []


def parts_keep_shapes(case: Case) -> bool:
  """embed gives a float stream [B, ..., D], sites keep its shape and dtype, and the objective can
  judge what readout gives; for the batch, for one example and for twice the batch."""
  shape = lambda rows: jax.ShapeDtypeStruct((rows, *case.x.shape[1:]), case.x.dtype)
  for rows in (len(case.x), 1, 2 * len(case.x)):
    value, say = shape(rows), case.violations.append
    for name, function in case.part_functions.items():
      try:
        out = jax.eval_shape(function, case.variables, value)
      except Exception as error:
        say(sentence(f'{name} fails on a batch of {rows}: {reason(error)}.'))
        if name == 'embed':
          return False
        continue
      if not hasattr(out, 'shape') or out.shape[:1] != (rows,):
        got = getattr(out, 'shape', type(out).__name__)
        say(sentence(f'{name} gives {got} for a batch of {rows}: expected [B, ...].'))
        if name == 'embed':
          return False
      elif name == 'embed':
        value = out
        if rows == len(case.x):
          case.stream = out
        if not jnp.issubdtype(out.dtype, jnp.floating):
          say(f'The stream that embed gives is {out.dtype}: expected floats.')
          return False
      elif name != 'readout':
        skippable = skips[name]
        if not skippable:
          if rows == len(case.x):
            case.streams[name] = value
          value = out
        elif out.shape != value.shape:
          say(
            f'{sentence(name)} maps a stream of shape {value.shape} to {out.shape}: a gated + '
            'needs the same shape.'
          )
        elif jnp.promote_types(out.dtype, value.dtype) != value.dtype:
          say(
            f'{sentence(name)} gives {out.dtype}, which turns the {value.dtype} stream into '
            'another dtype: cast its result to the dtype of its input.'
          )
      elif rows == len(case.x):
        _judge(case, out)
    if case.violations:
      return False
  return True


def _judge(case, outputs):
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


def space_matches(case: Case) -> bool:
  """`space` names the gates in order, and the cost of every part can be found."""
  names = gate_names(case.model)
  declared = getattr(case.model, 'stream_shape', None)
  if declared is not None and tuple(declared) != case.stream.shape[1:]:
    case.violations.append(
      f'stream_shape is {tuple(declared)}, but embed gives {case.stream.shape[1:]} per example.'
    )
    return True
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
