"""What the contract of an additive network is checked with, and its clauses about a module's form:
fields, parts, names of sites and gates."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import numpy as np

from additive_jax.gates.structure import Structure
from additive_jax.models.additive import RESIDUAL, Additive, Site, gate_names, sites_of

# XLA optimises for many fast runs of one program. Here each runs a few times, and these cut what
# compiling takes to a third, and to a tenth where random numbers are drawn.
CPU_OPTIONS = {'xla_backend_optimization_level': 0, 'xla_cpu_use_fusion_emitters': False}


@dataclasses.dataclass(frozen=True)
class Part:
  """One part of a model.

  Attributes:
    name: what to call it in a sentence: embed, site 'block_00', readout.
    method: from the module and an input or stream to what the part gives.
    site: its site, where it is one.
    index: number of that site.
  """

  name: str
  method: Callable
  site: Site | None = None
  index: int = 0

  def run(self, variables, value, *, model):
    """What the part gives for an input or stream, as a pure function of the variables."""
    return model.apply(variables, value, method=self.method)

  def after(self, value, out):
    """The stream after the part, from what it was given and what it gave."""
    return value + out if self.site is not None and self.site.adds else out


def site_part(site: Site, index: int, inner: tuple = ()) -> Part:
  """A site with values for its inner gates; () is all of them on."""
  inner = inner or (True,) * site.num_inner
  given = () if site.adds else (inner,)
  return Part(f'site {site.label!r}', lambda module, h: module.sites[index](h, *given), site, index)


@dataclasses.dataclass
class Case:
  """What is checked and what was found; each clause adds to it.

  Attributes:
    model, objective, max_structures, seed: what `testing.check_model` was given.
    x, y: a few examples of the batch it was given.
    targets: y of all of them.
    violations, notes: sentences.
    variables: `{'params': pool}` at init, a NumPy copy.
    moved: the variables that runs are compared at, a step away from init.
    streams: shape and dtype of the stream that each site takes, and readout, [B, ..., D].
    tolerance: how far apart, relative to the largest, numbers may be that should be equal.
    independent: whether examples do not influence each other, as far as is known.
    programs: by way to run and structure, the outputs as a compiled function of variables and x.
  """

  model: Any
  x: np.ndarray
  y: np.ndarray
  targets: np.ndarray
  objective: Callable
  max_structures: int
  seed: int
  violations: list[str] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)
  variables: Any = None
  moved: Any = None
  streams: tuple[jax.ShapeDtypeStruct, ...] = ()
  tolerance: float = 0.0
  independent: bool = True
  programs: dict[str, dict[Structure, Callable]] = dataclasses.field(default_factory=dict)

  @property
  def sites(self) -> tuple[Site, ...]:
    return sites_of(self.model)

  @property
  def parts(self) -> tuple[Part, ...]:
    """embed, the sites with all their gates on, and readout."""
    return (
      Part('embed', lambda module, x: module.embed(x)),
      *(site_part(site, i) for i, site in enumerate(self.sites)),
      Part('readout', lambda module, h: module.readout(h)),
    )

  def sample(self) -> list[Structure]:
    """The structures to compare: all if few, else all-on, all-off, inner gates alone off, and
    random pairs in which each gate is on in one and off in the other."""
    num_gates = len(gate_names(self.model))
    if num_gates < 31 and 1 << num_gates <= self.max_structures:
      return [Structure.from_int(v, num_gates=num_gates) for v in range(1 << num_gates)]
    inner = np.zeros(num_gates, bool)
    for site in self.sites:
      inner[site.inner] = True
    wanted = [np.ones(num_gates, bool), np.zeros(num_gates, bool), ~inner]
    rng = np.random.default_rng(self.seed)
    found = []
    while len(found) < self.max_structures:
      if not wanted:
        bits = rng.random(num_gates) < 0.5
        wanted = [bits, ~bits]
      structure = Structure(tuple(wanted.pop(0)))
      if structure not in found:
        found.append(structure)
    return sorted(found, key=str)


def compiled(function: Callable) -> Callable:
  """`jax.jit` for programs that run a few times."""
  return jax.jit(function, compiler_options=_quick_options())


@functools.cache
def _quick_options():
  """Options that make compiling quick, where this backend and version of XLA has them; or None."""
  if jax.default_backend() != 'cpu':
    return None
  try:
    jax.jit(lambda: 0, compiler_options=CPU_OPTIONS)()
  except jax.errors.JaxRuntimeError:
    return None
  return CPU_OPTIONS


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
      found['gates'] = [getattr(site, 'gates', None) for site in sites]

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
    say('It has no sites: in setup, make self.sites a list of submodules, which own the gates.')
  elif 'names' not in found:
    say(f'Its sites are a {type(found["sites"]).__name__}: expected a list of submodules.')
  elif not found['names']:
    say('Its list of sites is empty: expected at least one submodule.')
  case.violations += _wrong_sites(**found) if 'names' in found else []
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


def _wrong_sites(sites, names, gates, **others):
  """Sentences about sites that are no modules, have no name of their own, or misname gates."""
  found = []
  for i, name in enumerate(names):
    if name is None:
      kind = type(sites[i]).__name__
      found.append(
        f'Site {i} is a {kind}: expected a flax.linen.Module made in setup, which has a name.'
      )
    elif names.index(name) < i:
      found.append(
        f'Sites {names.index(name)} and {i} are both called {name!r}, so their gates could not be '
        'told apart: give every site a name of its own.'
      )
    elif wrong := _wrong_gates(gates[i]):
      found.append(f'Site {name!r} has gates {gates[i]!r}: {wrong}.')
  if not found and names and not any(own is None or own for own in gates):
    found.append('None of its sites has a gate: expected at least one gate in all.')
  return found


def _wrong_gates(gates):
  """What is wrong with the attribute `gates` of a site; None if nothing is."""
  if gates is None:
    return None
  sound = isinstance(gates, tuple) and all(isinstance(name, str) for name in gates)
  if not sound or not all(name and '/' not in name for name in gates):
    return (
      "expected a tuple of the names of the gates it owns, not empty and without '/' (call the "
      'attribute something else if it is about something else)'
    )
  if len(set(gates)) < len(gates):
    return 'expected different names'
  if RESIDUAL in gates[1:]:
    return f'expected {RESIDUAL!r} first, since it skips the whole site'
  return None
