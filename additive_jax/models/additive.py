"""What makes a Flax module additive: `embed → site_0 … site_{S-1} → readout`.

A site owns gates. In its simple form it is any submodule that maps the stream to the value that its
one gate, `residual`, adds. A site with an attribute `gates` (a tuple of names) owns those: it is
called as `site(h, gates)`, with one value for each gate other than `residual`, and returns the new
stream itself; a gate called `residual`, which must come first, skips the whole site when off.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree, Shaped

from additive_jax.batches import Shapes, check_one_array, shapes_of
from additive_jax.errors import UserError
from additive_jax.gates import networks
from additive_jax.gates.structure import Gate, Space, StructureLike, parse
from additive_jax.gates.sums import GateValue
from additive_jax.models.applying import apply_part, apply_whole
from additive_jax.models.side import call_part, stream_of
from additive_jax.models.sites import Site, Stream, read_sites, refuse_nnx
from additive_jax.models.surrounding import (
  EMBED,
  READOUT,
  WHOLE,
  input_dtype,
  mode,
  run_part,
)

PARTS = {
  'embed': 'from inputs to the stream',
  'sites': 'a list of submodules made in setup',
  'readout': 'from the stream to outputs',
}
# A batch: an array, or for a network of several inputs a pytree of arrays.
Inputs: TypeAlias = PyTree[Shaped[Array | np.ndarray, 'B ...']]
Logits = Float[Array, 'B ... C']


def flat(x: Inputs) -> Float[Array, 'B D']:
  """Returns inputs as rows of floats: float32, or what training computes in."""
  check_one_array(x)
  return jnp.asarray(x, input_dtype()).reshape(x.shape[0], -1)


def numbered(word: str, count: int) -> tuple[str, ...]:
  """Returns the names of `count` modules, with as many digits, at least two.

  >>> numbered('block', 2)
  ('block_00', 'block_01')
  """
  digits = max(2, len(str(count - 1)))
  return tuple(f'{word}_{i:0{digits}}' for i in range(count))


class Additive(nn.Module):
  """Base class of every additive network, the library's own and yours.

  A subclass provides three things, as methods or as submodules made in `setup`:

    embed(x): the input [B, ...], or a pytree of several, to the stream h [B, ..., D];
    sites: a list of submodules; site i maps the stream to the value that gate i adds to it, and
    gives the gate its name; readout(h): the stream to logits [B, ..., C]. What sites take beside
    the stream is its side, see `models.WithSide`.

  In return it is run as `model.apply(variables, x, structure)`, and `h ← h + g_i·site_i(h)` for
  each site in order. A submodule with an attribute `gates` owns several, or others than a residual
  one: see the head of this file. Branches must treat examples independently, for structures are
  evaluated side by side along the batch axis; `models.BatchNorm` does with stored statistics.

  >>> class TwoSites(Additive):
  ...   def setup(self):
  ...     self.embed, self.readout = nn.Dense(4), nn.Dense(3)
  ...     self.sites = [nn.Dense(4, name='first'), nn.Dense(4, name='second')]
  >>> TwoSites().space.names
  ('first/residual', 'second/residual')
  """

  def __call__(self, x: Inputs, structure: StructureLike | None = None) -> Logits:
    """Returns the logits of one static structure.

    Args:
      x: a batch of inputs, [B, ...]; or, as `embed` takes it, a pytree of arrays [B, ...].
      structure: a `Structure`, `'1011'`, an integer or a sequence of bits; None is all-on. Not
        traced.

    Returns:
      logits [B, ..., C].

    At init every site is created, whatever the structure, and with the same values.
    """
    sites = read_sites(self.sites)
    num_gates = sum(len(site.names) for site in sites)
    values = (True,) * num_gates if structure is None else parse(structure, num_gates).bits
    h = self.embed(x)
    for site, module in zip(sites, self.sites):
      gates, call = values[site.gates], functools.partial(call_part, module)
      if self.is_initializing() and not all(gates):
        site.step(call, h, (True,) * len(gates))
      h = site.step(call, h, gates)
    return call_part(self.readout, h)

  def init_with_output(self, *args: Any, **kwargs: Any) -> Any:
    """Returns what Flax's does, without the boxes that name axes, see `models.axes`."""
    return nn.meta.unbox(super().init_with_output(*args, **kwargs))

  def apply(self, variables: PyTree, *args: Any, **kwargs: Any) -> Any:
    """Returns what Flax's `apply` does.

    Raises:
      UserError: for variables that are not `{'params': pool}`, or a pool or inputs that do not fit
        the model.
    """
    check_variables(variables)
    apply = super().apply
    try:
      return run_part(self, WHOLE, variables, functools.partial(apply_whole, apply, kwargs), args)
    except flax.errors.ScopeParamNotFoundError as error:
      if kwargs.get('method') is not None:
        raise
      said = str(error).split('. (https')[0]
      raise UserError(f'{type(self).__name__}: {said}; expected a pool of this model') from error
    except flax.errors.ScopeParamShapeError as error:
      shapes = [tuple(leaf.shape) for leaf in jax.tree.leaves(args) if hasattr(leaf, 'shape')]
      raise UserError(
        f'{type(self).__name__} on inputs of shape {", ".join(map(str, shapes)) or "()"}: expected '
        f'inputs and a pool that fit each other ({str(error).split(" (https")[0]})'
      ) from error

  @property
  def space(self) -> Space:
    """The named gates; `additive_jax.measure(model, x)` adds what they cost."""
    return space_of(self)


# Pure functions of a model's parts: `variables` is `{'params': pool}`. They hold for any module
# that has the three parts.


def check_variables(variables: Any) -> None:
  """Raises `UserError` for variables that are not `{'params': pool}`.

  >>> check_variables([1, 2])
  Traceback (most recent call last):
  additive_jax.errors.UserError: variables list: expected {'params': pool}, which model.init gives
  """
  if not isinstance(variables, Mapping) or (variables and 'params' not in variables):
    given = list(variables) if isinstance(variables, Mapping) else type(variables).__name__
    raise UserError(f"variables {given}: expected {{'params': pool}}, which model.init gives")


def embed(model: nn.Module, variables: PyTree, x: Inputs) -> Stream:
  """Returns the stream [B, ..., D] of inputs."""
  return apply_part(model, variables, EMBED, lambda module, x: module.embed(x), x)


def branch(
  model: nn.Module, variables: PyTree, index: int, h: Stream, *gates: Sequence[GateValue]
) -> Stream:
  """Returns what the module of site `index` gives for the stream: the value to add, or, for a site
  that names its gates, the new stream for its inner gates."""
  return _of_site(model, variables, index, h, gates)


def step_leaving(
  model: nn.Module,
  variables: PyTree,
  index: int,
  h: Stream,
  leaving: Sequence[str],
  rngs: Mapping[str, PRNGKeyArray],
) -> tuple[Stream, dict[str, Any]]:
  """Returns the stream after site `index` with all its gates on, and the collections of these names
  that it leaves."""
  left: dict[str, Any] = {}

  def call(h: Stream, *gates: Sequence[GateValue]) -> Stream:
    given, collections = _of_site(
      model, variables, index, h, gates, mutable=list(leaving), rngs=dict(rngs)
    )
    left.update(collections)
    return given

  site = sites_of(model)[index]
  return site.step(call, h, (True,) * len(site.names)), left


def _of_site(model, variables, index, h, gates, **flax):
  site = sites_of(model)[index]
  call = lambda module, h, *gates: call_part(module.sites[index], h, *gates)
  given = apply_part(model, variables, index, call, h, *gates, casts=not site.casts, **flax)
  h = stream_of(h)
  if mode().dtype is None or site.casts:
    return given
  if 'mutable' in flax:
    return _in_stream(site, h, given[0]), given[1]
  return _in_stream(site, h, given)


def _in_stream(site: Site, h: Stream, given: Stream) -> Stream:
  """Returns what a site gave for a stream in the mode's dtype, in the stream's own."""
  wide = given.astype(h.dtype)
  if site.adds or not site.has_residual:
    return wide
  return h + (wide - h.astype(given.dtype).astype(h.dtype))  # what it has added alone is rounded


def update(
  model: nn.Module,
  variables: PyTree,
  index: int,
  h: Stream,
  inner: Sequence[GateValue] | None = None,
) -> Stream:
  """Returns the stream after site `index` with its residual gate on and these inner gates; None is
  all-on."""
  site = sites_of(model)[index]
  inner = (True,) * site.num_inner if inner is None else tuple(inner)
  return step(model, variables, index, h, (True,) * site.has_residual + inner)


def step(
  model: nn.Module,
  variables: PyTree,
  index: int,
  h: Stream,
  gates: Sequence[GateValue],
  scale: ArrayLike | None = None,
) -> Stream:
  """Returns the stream after site `index`, with values for all its gates; see `Site.step`."""
  call = functools.partial(branch, model, variables, index)
  return sites_of(model)[index].step(call, h, gates, scale)


def readout(model: nn.Module, variables: PyTree, h: Stream) -> Logits:
  """Returns the logits of a stream [B, ..., D]."""
  return apply_part(model, variables, READOUT, lambda module, h: call_part(module.readout, h), h)


def sites_of(model: nn.Module) -> tuple[Site, ...]:
  """Returns the sites of a model in order.

  Raises:
    UserError: for what is no additive module, or has fields without a hash.
  """
  refuse_nnx(model, 'model')
  if isinstance(model, type) or not hasattr(model, 'init'):
    given = f'the class {model.__name__}' if isinstance(model, type) else repr(model)[:80]
    raise UserError(f'model {given}: expected an instance of an additive module')
  try:
    return _sites_of(model)
  except TypeError:
    if field := _unhashable(model):
      raise UserError(
        f'field {field} of {type(model).__name__}, a {type(getattr(model, field)).__name__}: '
        'expected a value with a hash, such as a tuple, for compiled programs are kept by it'
      ) from None
    raise


def _unhashable(model) -> str | None:
  """Returns the name of a field that has no hash."""
  for field in dataclasses.fields(model):
    try:
      hash(getattr(model, field.name, None) if field.name != 'parent' else None)
    except TypeError:
      return field.name
  return None


@functools.lru_cache(maxsize=256)
def _sites_of(model):
  sites: list[Site] = []

  def read(module: Any) -> None:
    for part, role in PARTS.items():
      try:
        value = getattr(module, part)
      except AttributeError as error:
        text = str(error).rstrip('.')
        raise UserError(f'{type(module).__name__}: {text}; expected {part}, {role}') from error
      refuse_nnx(value, part)
      if part == 'sites':
        sites.extend(read_sites(value))

  jax.eval_shape(lambda key: model.init(key, method=read), jax.random.key(0))
  return tuple(sites)


def gate_names(model: nn.Module) -> tuple[str, ...]:
  """Returns the names of the gates in order: each site's label and the gate's own name.

  >>> gate_names(aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3))
  ('block_00/residual', 'block_01/residual')
  """
  return tuple(f'{site.label}/{name}' for site in sites_of(model) for name in site.names)


@functools.lru_cache(maxsize=256)
def space_of(model: nn.Module) -> Space:
  """Returns the gates of a model in order, without what they cost."""
  gates = []
  for site in sites_of(model):
    names = [f'{site.label}/{name}' for name in site.names]
    host = names[0] if site.has_residual else None
    gates += [Gate(name, within=host if name != host else None) for name in names]
  return Space(tuple(gates))


def canonical(model: nn.Module, bits: Bool[np.ndarray, 'S n']) -> Bool[np.ndarray, 'S n']:
  """Returns structures with the inner gates of sites that are off cleared: they have no effect.

  >>> gates = ('residual', 'sub_activation')
  >>> model = aj.models.MLP(1, width=4, hidden=8, num_classes=3, gates=gates, num_chunks=3)
  >>> canonical(model, np.array([[False, True, True], [True, False, True]])).astype(int)
  array([[0, 0, 0],
         [1, 0, 1]])
  """
  return networks.canonical(space_of(model), bits)


def shape_of(x: Inputs | Shapes) -> Shapes:
  """Returns the shape of inputs and their dtype as JAX takes it."""
  return shapes_of(x)


@functools.partial(jax.jit, static_argnums=0)
def initial(model: nn.Module, key: PRNGKeyArray, x: Inputs) -> PyTree:
  """Returns what `model.init(key, x)` gives, in one program that leaves out all but the pool."""
  return model.init(key, x)


def initial_shapes(model: nn.Module, x: Inputs | Shapes) -> PyTree:
  """Returns the shapes of what `model.init` gives, which is traced once for a model and inputs.

  >>> initial_shapes(nn.Dense(4), np.ones((5, 6)))['params']['kernel'].shape
  (6, 4)
  """
  return initial.eval_shape(model, jax.random.key(0), shape_of(x))
