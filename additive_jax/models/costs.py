"""What the parts of a model cost: FLOPs (`models.flops` says what counts) and parameters. Nothing
is computed but shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import PyTree

from additive_jax.batches import Shapes, cached, num_examples
from additive_jax.files.kept import kept
from additive_jax.gates.structure import Gate, Shared, Space
from additive_jax.models.additive import (
  Inputs,
  Site,
  embed,
  gate_names,
  initial_shapes,
  readout,
  shape_of,
  sites_of,
  update,
)
from additive_jax.models.contract import check_network
from additive_jax.models.flops import count_flops, count_traced
from additive_jax.models.reads import Parts, parts

Readers = dict[str, set[int | None]]  # by leaf: numbers of gates; None: whatever the structure


class Program(NamedTuple):
  """What a part of a model costs.

  Attributes:
    flops: of one example's forward pass.
    read: the leaves of the pool that enter its result.
  """

  flops: float
  read: set[str]


def measure(model: nn.Module, x: Inputs | Shapes) -> Space:
  """Returns the space of `model` with all its costs, for inputs of the shape of `x` [B, ...].

  FLOPs are those of the program of each part, per example of `x`: XLA's own count, with loops times
  their trips (`models.flops`). A branch that is chosen while the program runs counts as the dearest
  one, so a network whose tokens choose counts as what it may take at most; `active.active_flops`
  counts what was chosen.

  A parameter counts with the structures whose programs read it: with all of them if embed or
  readout do, else with those that have a site on which does, shared or not. What a site without a
  residual gate costs with its gates off is fixed; of its inner gates each is measured alone, and
  they are taken to add up.

  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> measure(model, jnp.zeros((1, 5))).params('11')
  215

  Raises:
    UserError: for a part that cannot be counted, such as a loop whose trips are known only when it
      runs.
  """
  check_network(model, x)
  return measured(model, shape_of(x))


@cached(maxsize=64)
@kept(dataclasses.asdict, lambda fields: _space(**fields))
def measured(model: nn.Module, x: Shapes) -> Space:
  """Returns `measure` of a shape; experiments ask for that of one network many times."""
  names, shapes = gate_names(model), parts(model, x)
  ends = _ends(model, shapes, x)
  fixed_flops = sum(end.flops for end in ends)
  readers: Readers = {path: {None} for end in ends for path in end.read}
  flops, within = dict.fromkeys(names, 0.0), dict.fromkeys(names)
  for i, site in enumerate(sites_of(model)):
    owner = site.start if site.has_residual else None
    off, *alone, on = _site(model, i, site, shapes)
    if owner is None:
      fixed_flops += off.flops
    else:
      flops[names[owner]] = off.flops
    for k, program in zip(range(*site.inner.indices(len(names))), alone, strict=True):
      flops[names[k]] = program.flops - off.flops
      within[names[k]] = None if owner is None else names[owner]
    for path in off.read.union(on.read, *(program.read for program in alone)):
      inner = [k + site.inner.start for k, one in enumerate(alone) if path in one.read]
      readers.setdefault(path, set()).update([owner] if path in off.read else inner or [owner])
  sizes = _sizes(shapes.embed) | _sizes(shapes.readout)
  for tree in shapes.sites:
    sizes |= _sizes(tree)
  own, fixed_params, shared = _by_readers(sizes, readers, names)
  gates = tuple(Gate(name, flops[name], own[name], within[name]) for name in names)
  return Space(gates, fixed_flops, fixed_params, shared)


def ends_flops(model: nn.Module, shapes: Parts, x: Inputs | Shapes) -> float:
  """Returns the FLOPs of embed and readout, per example of `x`; `shapes` are the model's for x.

  They are what `measure` gives as fixed where every site has a residual gate:

  >>> model, x = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3), jnp.zeros((1, 5))
  >>> ends_flops(model, parts(model, x), x) == measure(model, x).fixed_flops
  True
  """
  return sum(end.flops for end in _ends(model, shapes, shape_of(x)))


def module_flops(module: nn.Module, tokens: int, width: int) -> float:
  """Returns the FLOPs of a module on a stream [1, T, D].

  For each token and output a dense layer multiplies and adds D times and adds a bias:

  >>> module_flops(nn.Dense(4), tokens=3, width=8) == 3 * 4 * (2 * 8 + 1)
  True
  """
  h = jax.ShapeDtypeStruct((1, tokens, width), 'float32')
  params = jax.eval_shape(module.init, jax.random.key(0), h)['params']
  return count_flops(module.apply, {'params': params}, h, of=type(module).__name__)


def num_params(model: nn.Module, x: Inputs | Shapes) -> int:
  """Returns how many parameters the pool has, for inputs of the shape of `x` [B, ...].

  >>> num_params(aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3), jnp.zeros((1, 5)))
  215
  """
  return _num_params(model, shape_of(x))


@kept(int, int)
def _num_params(model: nn.Module, x: Shapes) -> int:
  return sum(_sizes(initial_shapes(model, x)).values())


def _space(gates: Any, shared: Any, **fixed: Any) -> Space:
  """Returns the space of the fields of one."""
  shared = tuple(Shared(one['params'], tuple(one['gates'])) for one in shared)
  return Space(tuple(Gate(**gate) for gate in gates), shared=shared, **fixed)


def _ends(model: nn.Module, shapes: Parts, x: Shapes) -> tuple[Program, Program]:
  """Returns embed and readout."""
  of = type(model).__name__
  return (
    _program(lambda v, x: embed(model, v, x), shapes, shapes.embed, x, f'the embedding of {of}'),
    _program(
      lambda v, h: readout(model, v, h),
      shapes,
      shapes.readout,
      shapes.streams[-1],
      f'the readout of {of}',
    ),
  )


def _site(model: nn.Module, index: int, site: Site, shapes: Parts) -> list[Program]:
  """Returns a site with its inner gates off, with each of them on alone, and with all on."""
  h, tree = shapes.streams[index], shapes.sites[index]
  of = f'site {site.label!r} of {type(model).__name__}'
  count = site.num_inner
  alone = [tuple(j == k for j in range(count)) for k in range(count)]
  programs: dict[tuple[bool, ...], Program] = {}
  for inner in ((False,) * count, *alone, (True,) * count):
    if inner not in programs:
      run = lambda v, h, inner=inner: update(model, v, index, h, inner)
      programs[inner] = _program(run, shapes, tree, h, of)
  return [programs[inner] for inner in ((False,) * count, *alone, (True,) * count)]


def _program(
  function: Callable[..., Any], shapes: Parts, params: PyTree, value: Shapes, of: str
) -> Program:
  """Returns what `function(variables, value)` costs with these parameters; `of` is its name."""
  run = lambda params, stored, value: function({'params': params, **stored}, value)
  traced = jax.jit(run).trace(params, shapes.stored, value)
  program = traced.jaxpr.jaxpr
  _, used = dce_jaxpr(program, [True] * len(program.outvars))
  read = {path for path, is_read in zip(_sizes(params), used) if is_read}
  return Program(count_traced(traced, of) / num_examples(value), read)


def _by_readers(
  sizes: Mapping[str, int], readers: Readers, names: tuple[str, ...]
) -> tuple[dict[str, int], int, tuple[Shared, ...]]:
  """Returns the parameters that each gate alone reads, those that all structures read, and those
  that several gates share."""
  own, fixed = dict.fromkeys(names, 0), 0
  shared: dict[tuple[str, ...], int] = {}
  for path, gates in readers.items():
    numbers = sorted(gate for gate in gates if gate is not None)
    if len(numbers) < len(gates):
      fixed += sizes[path]
    elif len(numbers) == 1:
      own[names[numbers[0]]] += sizes[path]
    else:
      among = tuple(names[k] for k in numbers)
      shared[among] = shared.get(among, 0) + sizes[path]
  return own, fixed, tuple(Shared(params, gates) for gates, params in shared.items())


def _sizes(tree: PyTree) -> dict[str, int]:
  """Returns how many parameters each leaf has, by its path."""
  flat = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): int(np.prod(leaf.shape)) for path, leaf in flat}
