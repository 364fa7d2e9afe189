"""Clauses of the contract about a module's form: fields, parts, names of sites and gates."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import flax.linen as nn
import jax

from additive_jax.models.additive import Additive
from additive_jax.models.contract import reason
from additive_jax.models.sites import wrong_gates
from additive_jax.testing.case import Case


def is_usable_module(case: Case) -> bool:
  """Checks that it is an instance of a Flax Linen module with hashable fields."""
  model = case.model
  if isinstance(model, type):
    return case.fail(f'{model.__name__} is a class: pass an instance, {model.__name__}(...).')
  if not isinstance(model, nn.Module):
    return case.fail(
      f'It is a {type(model).__module__}.{type(model).__name__}, not a flax.linen.Module: write it '
      'as a subclass of additive_jax.Additive.'
    )
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
      case.fail(
        f'Field {field.name!r} is a {type(value).__name__}, which has no hash, so compiled '
        f'programs cannot be kept per model: {remedy}.'
      )
  return not case.violations


def has_its_parts(case: Case) -> bool:
  """Checks that it has embed, sites, readout, `__call__(x, structure)`, and a unique name for every
  gate."""
  model = case.model
  module_parts: dict[str, Any] = {}

  def read(module):
    for name in ('embed', 'sites', 'readout'):
      module_parts[name] = getattr(module, name, None)
    if isinstance(module_parts['sites'], list | tuple):
      module_parts['described'] = [
        (type(site).__name__, getattr(site, 'gates', None), _name(site))
        for site in module_parts['sites']
      ]

  try:
    jax.eval_shape(lambda key: model.init(key, method=read), jax.random.key(case.seed))
  except Exception as error:
    return case.fail(f'Its setup fails: {reason(error)}.')
  for name, role in (('embed', 'input to stream'), ('readout', 'stream to outputs')):
    if not callable(module_parts[name]):
      case.fail(
        f'It has no {name} ({role}): define a method {name}, or make it a submodule in setup (the '
        'parts of a module with @nn.compact cannot be called one by one).'
      )
  sites = module_parts['sites']
  if sites is None:
    case.fail(
      'It has no sites: in setup, make self.sites a list of submodules, which own the gates.'
    )
  elif 'described' not in module_parts:
    case.fail(f'Its sites are a {type(sites).__name__}: expected a list of submodules.')
  elif not sites:
    case.fail('Its list of sites is empty: expected at least one submodule.')
  else:
    case.violations += _wrong_sites(module_parts['described'])
  if not isinstance(model, Additive):
    _check_call(case)
  return not case.violations


def _name(site) -> str | None:
  return site.name if isinstance(site, nn.Module) else None


def _check_call(case: Case) -> None:
  """Checks that a module that is no `Additive` has its own `space` and `__call__(x, structure)`."""
  kind = type(case.model)
  if not hasattr(kind, 'space'):
    case.fail('It has no space: subclass additive_jax.Additive, which provides it.')
  parameters = inspect.signature(kind.__call__).parameters.values()
  positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
  if len(positional) < 3 and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
    case.fail(
      'Its __call__ takes no structure: subclass additive_jax.Additive, which provides '
      '__call__(x, structure).'
    )


def _wrong_sites(sites: list[tuple[str, Any, str | None]]) -> list[str]:
  """Returns sentences about sites (class, gates, name) that are no modules, have no name of their
  own, or misname gates."""
  wrong: list[str] = []
  names = [name for _, _, name in sites]
  for i, (kind, gates, name) in enumerate(sites):
    if name is None:
      wrong.append(
        f'Site {i} is a {kind}: expected a flax.linen.Module made in setup, which has a name.'
      )
    elif names.index(name) < i:
      wrong.append(
        f'Sites {names.index(name)} and {i} are both called {name!r}, so their gates could not be '
        'told apart: give every site a name of its own.'
      )
    elif expected := wrong_gates(gates):
      wrong.append(f'Site {name!r} has gates {gates!r}: {expected}.')
  if not wrong and not any(gates is None or gates for _, gates, _ in sites):
    wrong.append('None of its sites has a gate: expected at least one gate in all.')
  return wrong
