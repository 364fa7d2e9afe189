"""What makes a Flax module additive: `embed → site_0 … site_{S-1} → readout`."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np

from additive_jax import gates
from additive_jax.structure import Gate, Space, Structure, parse


class Additive(nn.Module):
  """Base class of every additive network, the library's own and yours.

  A subclass provides three things, as methods or as submodules made in `setup`:

    embed(x): the input [B, ...] to the stream h [B, ..., D];
    sites: a list of submodules; site i maps the stream to the value that gate i adds to it, and
    gives the gate its name; readout(h): the stream to logits [B, ..., C].

  In return it is run as `model.apply(variables, x, structure)`, and `h ← h + g_i·site_i(h)` for
  each site in order. Branches must treat examples independently (no batch statistics): structures
  are evaluated side by side along the batch axis.
  """

  @property
  def stream_shape(self) -> tuple[int, ...] | None:
    """Shape of one example's stream, where the fields alone determine it; else None."""
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
    sites = self.sites
    structure = Structure.all_on(len(sites)) if structure is None else parse(structure, len(sites))
    h = self.embed(x)
    for site, on in zip(sites, structure):
      if self.is_initializing() and not on:
        site(h)
      h = gates.residual(h, site, on)
    return self.readout(h)

  @property
  def space(self) -> Space:
    """The named gates, with the FLOPs and parameters each one switches if `stream_shape` is known.

    What embed and readout cost depends on the input: `additive_jax.measure(model, x)` adds it.
    """
    names = gate_names(self)
    if self.stream_shape is None:
      return Space(tuple(Gate(name) for name in names))
    return Space(_measured_gates(self, names, (1, *self.stream_shape), 'float32'))


# Pure functions of a model's parts: `variables` is `{'params': pool}`. They hold for any module
# that has the three parts.


def embed(model: nn.Module, variables, x: jax.Array) -> jax.Array:
  """Input [B, ...] to stream [B, ..., D]."""
  return model.apply(variables, x, method=lambda module, x: module.embed(x))


def branch(model: nn.Module, variables, index: int, h: jax.Array) -> jax.Array:
  """What site `index` would add to the stream h [B, ..., D]; the same shape."""
  return model.apply(variables, h, method=lambda module, h: module.sites[index](h))


def readout(model: nn.Module, variables, h: jax.Array) -> jax.Array:
  """Stream [B, ..., D] to logits [B, ..., C]."""
  return model.apply(variables, h, method=lambda module, h: module.readout(h))


@functools.lru_cache(maxsize=256)
def gate_names(model: nn.Module) -> tuple[str, ...]:
  """Names of the gates in order: each site's module name, followed by `/residual`."""
  names = []

  def read(module):
    names.extend(f'{site.name}/residual' for site in module.sites)

  jax.eval_shape(lambda key: model.init(key, method=read), jax.random.key(0))
  return tuple(names)


@dataclasses.dataclass(frozen=True)
class Parts:
  """Which leaves of the pool each part of a model reads, as pytrees of shapes.

  Attributes:
    embed, readout: parameter trees (`ShapeDtypeStruct` leaves) of the ungated parts.
    sites: one tree per site.
  """

  embed: dict
  sites: tuple[dict, ...]
  readout: dict


def parts(model: nn.Module, x) -> Parts:
  """Finds what each part of `model` reads, by tracing its init on the shapes of `x` [B, ...].
  Computes nothing.
  """
  key = jax.random.key(0)

  def shapes(function, value):
    variables = jax.eval_shape(lambda k, v: model.init(k, v, method=function), key, value)
    return variables.get('params', {})

  h = _stream(model, x)
  sites = tuple(
    shapes(lambda module, h, i=i: module.sites[i](h), h) for i in range(len(gate_names(model)))
  )
  return Parts(
    shapes(lambda module, x: module.embed(x), x),
    sites,
    shapes(lambda module, h: module.readout(h), h),
  )


def measure(model: nn.Module, x) -> Space:
  """The space of `model` with all its costs, for inputs of the shape of `x` [B, ...].

  FLOPs are XLA's own count for the program of each part, per example of `x`. Parameters shared by
  several parts are counted once: for embed and readout if they read them, else for the first site
  that does.
  """
  x = jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(x.dtype))
  h = _stream(model, x)
  found = parts(model, x)
  gates_ = _measured_gates(model, gate_names(model), h.shape, str(h.dtype), found)
  fixed = _leaves(found.embed) | _leaves(found.readout)
  flops = _flops(lambda v, x: embed(model, v, x), found.embed, x)
  flops += _flops(lambda v, h: readout(model, v, h), found.readout, h)
  return Space(gates_, flops / x.shape[0], sum(fixed.values()))


def _stream(model: nn.Module, x):
  key = jax.random.key(0)
  run = lambda k, x: model.init_with_output(k, x, method=lambda module, x: module.embed(x))[0]
  return jax.eval_shape(run, key, x)


def _measured_gates(model, names, stream_shape, dtype, found: Parts | None = None):
  h = jax.ShapeDtypeStruct(stream_shape, dtype)
  if found is None:
    key = jax.random.key(0)
    init = lambda i: lambda k, h: model.init(k, h, method=lambda module, h: module.sites[i](h))
    trees = [jax.eval_shape(init(i), key, h).get('params', {}) for i in range(len(names))]
    taken = {}
  else:
    trees = found.sites
    taken = _leaves(found.embed) | _leaves(found.readout)
  measured = []
  for i, (name, tree) in enumerate(zip(names, trees)):
    new = {path: size for path, size in _leaves(tree).items() if path not in taken}
    taken = taken | new
    flops = _flops(lambda v, h, i=i: h + branch(model, v, i, h), tree, h)
    measured.append(Gate(name, flops / stream_shape[0], sum(new.values())))
  return tuple(measured)


def _leaves(tree) -> dict[str, int]:
  flat = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): int(np.prod(leaf.shape)) for path, leaf in flat}


def _flops(function, params, value) -> float:
  analysis = jax.jit(function).lower({'params': params}, value).cost_analysis() or {}
  return float(analysis.get('flops', 0.0))
