"""What makes a Flax module additive: `embed → site_0 … site_{S-1} → readout`.

A site owns gates. In its simple form it is any submodule that maps the stream to the value that its
one gate, `residual`, adds. A site with an attribute `gates` (a tuple of names) owns those: it is
called as `site(h, values)`, with one value for each gate other than `residual`, and returns the new
stream itself; a gate called `residual`, which must come first, skips the whole site when off.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from additive_jax import gates
from additive_jax.errors import UserError
from additive_jax.gates.structure import Gate, Space, Structure, parse
from additive_jax.models.kinds import LANE, RESIDUAL


@dataclasses.dataclass(frozen=True)
class Site:
  """Which gates a site owns.

  Attributes:
    label: the first part of its gates' names: the module's name, with / for __.
    names: of its gates, in order.
    start: number of its first gate in the structure.
    adds: True for the simple form, whose module returns the value to add.
  """

  label: str
  names: tuple[str, ...]
  start: int
  adds: bool

  @property
  def has_residual(self) -> bool:
    return self.names[:1] == (RESIDUAL,)

  @property
  def num_inner(self) -> int:
    """Gates other than the residual one."""
    return len(self.names) - self.has_residual

  @property
  def own(self) -> slice:
    """Its gates in a structure."""
    return slice(self.start, self.start + len(self.names))

  @property
  def inner(self) -> slice:
    """Its gates other than the residual one in a structure."""
    return slice(self.start + self.has_residual, self.start + len(self.names))

  def step(self, call, h: jax.Array, values: Sequence, scale=None) -> jax.Array:
    """The stream after this site.

    Args:
      call: the module, or a pure function like it.
      values: of its gates, in one of the forms of `gates`.
      scale: what the site adds is multiplied by, where it has a residual gate; None is 1.
    """
    if self.adds:
      return gates.residual(h, call, values[0], scale)
    if self.has_residual:
      gate = values[0]
      if LANE in self.names and getattr(gate, 'ndim', 0) > 1:
        gate = jnp.expand_dims(gate, 1)  # lanes stand between examples and tokens
      return gates.choose(h, lambda h: call(h, tuple(values[1:])), gate, scale)
    return call(h, tuple(values))


def read_sites(modules) -> tuple[Site, ...]:
  """The sites of a list of submodules."""
  sites, start = [], 0
  for module in modules:
    names = getattr(module, 'gates', None)
    label = module.name.replace('__', '/')
    site = Site(label, (RESIDUAL,) if names is None else tuple(names), start, names is None)
    sites.append(site)
    start += len(site.names)
  return tuple(sites)


class Additive(nn.Module):
  """Base class of every additive network, the library's own and yours.

  A subclass provides three things, as methods or as submodules made in `setup`:

    embed(x): the input [B, ...] to the stream h [B, ..., D];
    sites: a list of submodules; site i maps the stream to the value that gate i adds to it, and
    gives the gate its name; readout(h): the stream to logits [B, ..., C].

  In return it is run as `model.apply(variables, x, structure)`, and `h ← h + g_i·site_i(h)` for
  each site in order. A submodule with an attribute `gates` owns several, or others than a residual
  one: see the head of this file. Branches must treat examples independently (no batch statistics):
  structures are evaluated side by side along the batch axis.
  """

  @property
  def stream_shape(self) -> tuple[int, ...] | None:
    """Shape of one example's stream, where the fields alone determine it and no site changes it;
    else None."""
    return None

  def __call__(self, x: jax.Array, structure=None) -> jax.Array:
    """The logits of one static structure.

    Args:
      x: a batch of inputs, [B, ...].
      structure: a `Structure`, `'1011'`, an integer or a sequence of bits; None is all-on. Not
        traced.

    Returns:
      logits [B, ..., C].

    At init every site is created, whatever the structure, and with the same values.
    """
    sites = read_sites(self.sites)
    num_gates = sum(len(site.names) for site in sites)
    structure = Structure.all_on(num_gates) if structure is None else parse(structure, num_gates)
    h = self.embed(x)
    for site, module in zip(sites, self.sites):
      values = structure.bits[site.own]
      if self.is_initializing() and not all(values):
        site.step(module, h, (True,) * len(values))
      h = site.step(module, h, values)
    return self.readout(h)

  def apply(self, variables, *args, **kwargs):
    """Flax's `apply`.

    Raises:
      UserError: for variables that are not `{'params': pool}`, or a pool or inputs that do not fit
        the model.
    """
    if not isinstance(variables, Mapping) or (variables and 'params' not in variables):
      given = list(variables) if isinstance(variables, Mapping) else type(variables).__name__
      raise UserError(f"variables {given}: expected {{'params': pool}}, which model.init gives")
    try:
      return super().apply(variables, *args, **kwargs)
    except flax.errors.ScopeParamShapeError as error:
      shapes = [tuple(leaf.shape) for leaf in jax.tree.leaves(args) if hasattr(leaf, 'shape')]
      raise UserError(
        f'{type(self).__name__} on inputs of shape {", ".join(map(str, shapes)) or "()"}: expected '
        f'inputs and a pool that fit each other ({str(error).split(" (https")[0]})'
      ) from error

  @property
  def space(self) -> Space:
    """The named gates, with the FLOPs and parameters each one switches if `stream_shape` is known.

    What embed and readout cost depends on the input: `additive_jax.measure(model, x)` adds it.
    """
    names = gate_names(self)
    if self.stream_shape is None:
      return Space(tuple(Gate(name) for name in names))
    h = jax.ShapeDtypeStruct((1, *self.stream_shape), 'float32')
    trees, _ = _site_shapes(self, h)
    return Space(_measured_gates(self, [h] * len(trees), trees, {})[0])


# Pure functions of a model's parts: `variables` is `{'params': pool}`. They hold for any module
# that has the three parts.


def embed(model: nn.Module, variables, x: jax.Array) -> jax.Array:
  """Input [B, ...] to stream [B, ..., D]."""
  return model.apply(variables, x, method=lambda module, x: module.embed(x))


def branch(model: nn.Module, variables, index: int, h: jax.Array, *values) -> jax.Array:
  """What the module of site `index` gives for the stream h [B, ..., D]: the value to add, or, for a
  site that names its gates, the new stream for the values of its inner gates."""
  return model.apply(variables, h, *values, method=_call(index))


def update(model: nn.Module, variables, index: int, h: jax.Array, values: Sequence | None = None):
  """The stream after site `index` with its residual gate on and `values` for its inner gates; None
  is all-on."""
  site = sites_of(model)[index]
  values = (True,) * site.num_inner if values is None else tuple(values)
  return step(model, variables, index, h, (True,) * site.has_residual + values)


def step(model: nn.Module, variables, index: int, h: jax.Array, values: Sequence, scale=None):
  """The stream after site `index`, with values for all its gates; see `Site.step`."""
  call = functools.partial(branch, model, variables, index)
  return sites_of(model)[index].step(call, h, values, scale)


def readout(model: nn.Module, variables, h: jax.Array) -> jax.Array:
  """Stream [B, ..., D] to logits [B, ..., C]."""
  return model.apply(variables, h, method=lambda module, h: module.readout(h))


@functools.lru_cache(maxsize=256)
def sites_of(model: nn.Module) -> tuple[Site, ...]:
  """The sites of a model in order."""
  found = []

  def read(module):
    found.extend(read_sites(module.sites))

  jax.eval_shape(lambda key: model.init(key, method=read), jax.random.key(0))
  return tuple(found)


@functools.lru_cache(maxsize=256)
def gate_names(model: nn.Module) -> tuple[str, ...]:
  """Names of the gates in order, such as `block_00/residual`: each site's label and the gate's own
  name."""
  return tuple(f'{site.label}/{name}' for site in sites_of(model) for name in site.names)


def canonical(model: nn.Module, bits: np.ndarray) -> np.ndarray:
  """Structures [S, n] with the inner gates of sites that are off cleared: they have no effect."""
  bits = bits.copy()
  for site in sites_of(model):
    if site.has_residual:
      bits[:, site.inner] &= bits[:, site.start, None]
  return bits


@dataclasses.dataclass(frozen=True)
class Parts:
  """Which leaves of the pool each part of a model reads, as pytrees of shapes.

  Attributes:
    embed, readout: parameter trees (`ShapeDtypeStruct` leaves) of the ungated parts.
    sites: one tree per site.
    streams: the stream that each site takes, as `ShapeDtypeStruct`, and the one readout takes.
  """

  embed: dict
  sites: tuple[dict, ...]
  readout: dict
  streams: tuple[jax.ShapeDtypeStruct, ...]


def parts(model: nn.Module, x) -> Parts:
  """Finds what each part of `model` reads, by tracing its init on the shapes of `x` [B, ...].
  Computes nothing.
  """
  found, h = _shapes(model, lambda module, x: module.embed(x), x)
  trees, streams = _site_shapes(model, h)
  last, _ = _shapes(model, lambda module, h: module.readout(h), streams[-1])
  return Parts(found, trees, last, streams)


def measure(model: nn.Module, x) -> Space:
  """The space of `model` with all its costs, for inputs of the shape of `x` [B, ...].

  FLOPs are XLA's own count for the program of each part, per example of `x`. Parameters shared by
  several parts are counted once: for embed and readout if they read them, else for the first site
  that does. What a site without a residual gate costs with its gates off is fixed.
  """
  x = jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(x.dtype))
  found = parts(model, x)
  taken = _leaves(found.embed) | _leaves(found.readout)
  gates_, flops, params = _measured_gates(model, found.streams, found.sites, taken)
  flops *= x.shape[0]
  flops += _flops(lambda v, x: embed(model, v, x), found.embed, x)
  flops += _flops(lambda v, h: readout(model, v, h), found.readout, found.streams[-1])
  return Space(gates_, flops / x.shape[0], params + sum(taken.values()))


@functools.partial(jax.jit, static_argnums=0)
def initial(model: nn.Module, key: jax.Array, x: jax.Array):
  """What `model.init(key, x)` gives, in one program that leaves out everything but the pool."""
  return model.init(key, x)


def _call(index):
  return lambda module, h, *values: module.sites[index](h, *values)


def _shapes(model, function, value):
  """The parameters that `function(module, value)` reads, and what it gives, as shapes."""
  run = lambda key, value: model.init_with_output(key, value, method=function)
  out, variables = jax.eval_shape(run, jax.random.key(0), value)
  return variables.get('params', {}), out


def _site_shapes(model, h):
  """Each site's parameters, and the stream before each and after the last."""
  trees, streams = [], [h]
  for i, site in enumerate(sites_of(model)):
    on = (True,) * len(site.names)
    run = lambda module, h, i=i, site=site, on=on: site.step(module.sites[i], h, on)
    tree, h = _shapes(model, run, h)
    trees.append(tree)
    streams.append(h)
  return tuple(trees), tuple(streams)


def _measured_gates(model, streams, trees, taken):
  """The gates with their costs, and the FLOPs and parameters of sites that no gate switches."""
  names, measured = gate_names(model), []
  fixed_flops, fixed_params = 0.0, 0
  for i, (site, h, tree) in enumerate(zip(sites_of(model), streams, trees)):
    new = {path: size for path, size in _leaves(tree).items() if path not in taken}
    taken = taken | new
    size = sum(new.values())

    def flops(values, i=i, h=h, tree=tree):
      return _flops(lambda v, h: update(model, v, i, h, values), tree, h) / h.shape[0]

    off = (False,) * site.num_inner
    base = flops(off)
    if site.has_residual:
      measured.append(Gate(names[site.start], base, size))
    else:
      fixed_flops, fixed_params = fixed_flops + base, fixed_params + size
    within = names[site.start] if site.has_residual else None
    for k in range(site.num_inner):
      one = tuple(j == k for j in range(site.num_inner))
      name = names[site.inner.start + k]
      measured.append(Gate(name, flops(one) - base, 0, within))
  return tuple(measured), fixed_flops, fixed_params


def _leaves(tree) -> dict[str, int]:
  flat = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): int(np.prod(leaf.shape)) for path, leaf in flat}


def module_flops(module: nn.Module, tokens: int, width: int) -> float:
  """FLOPs of a module on a stream [1, tokens, width], in XLA's own count."""
  h = jax.ShapeDtypeStruct((1, tokens, width), 'float32')
  params = jax.eval_shape(module.init, jax.random.key(0), h)['params']
  return _flops(module.apply, params, h)


def _flops(function, params, value) -> float:
  analysis = jax.jit(function).lower({'params': params}, value).cost_analysis() or {}
  return float(analysis.get('flops', 0.0))
