"""A network in stages: which sites make a stage, and the pool with the stages' leaves stacked.

Stages must be alike: the leaves of the pool at equal places of each are stacked on two leading axes
[P, R], of which the first is split over the mesh axis `pipe`, so that a device holds the leaves of
its own stages alone. What is no site's (embedding, positions, readout) is on every device.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree

from additive_jax.batches import Shapes, cached, example_shapes
from additive_jax.errors import UserError
from additive_jax.models.additive import sites_of
from additive_jax.models.kinds import LANE
from additive_jax.models.reads import parts
from additive_jax.parallel import layout
from additive_jax.parallel.mesh import PIPE
from additive_jax.parallel.pipeline_schedule import Pipeline


class Staged(NamedTuple):
  """A pool, or anything like it, in stages.

  Attributes:
    ends: what no site reads alone, by name as in the pool.
    stages: a pytree for each place in a stage, of leaves [P, R, ...]: [d, r] is of stage r·P + d.
  """

  ends: dict[str, Any]
  stages: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Staging:
  """A model in stages.

  Attributes:
    pipeline: how.
    names: by stage, for each of its sites the name of its module in the pool; '' for sites without
      parameters.
  """

  pipeline: Pipeline
  names: tuple[tuple[str, ...], ...]


@cached(maxsize=32)
def staging(model: Any, pipeline: Pipeline, example: Shapes) -> Staging:
  """Returns the stages of a model.

  Args:
    example: the shape of a batch of inputs.

  Raises:
    UserError: for lanes or routers, sites that do not divide into the stages, or stages that are
      not alike: other modules, parameters of another shape, streams of another shape between them.
  """
  kind, count = type(model).__name__, pipeline.stages
  if LANE in getattr(model, 'gates', ()):
    raise UserError(f'{kind} with lane gates over {pipeline.devices} pipe_devices: expected none')
  if layout.has_experts(model, example) or getattr(model, 'routing', None) is not None:
    raise UserError(f'{kind} with routers over {pipeline.devices} pipe_devices: expected none')
  sites = sites_of(model)
  if not sites or len(sites) % count:
    raise UserError(
      f'{len(sites)} sites of {kind} in {count} stages ({pipeline.devices} pipe_devices × '
      f'{pipeline.repeats}): expected a multiple of {count}'
    )
  size = len(sites) // count
  read_by, modules = parts(model, example), _modules(model)
  # A transformer's positions belong to all modules: every part is said to read them.
  shared = read_by.embed.keys() | read_by.readout.keys()
  names = []
  for i, (site, tree) in enumerate(zip(sites, read_by.sites)):
    name = modules[i][0]
    others = tree.keys() - shared - {name} or shared & {name}
    if others:
      raise UserError(
        f'site {site.label} shares {", ".join(sorted(others))} with other parts: expected none in '
        'stages'
      )
    first = i % size
    alike = (modules[i][1], site.names, site.adds, _described(tree.get(name)))
    model_of = modules[first][1], sites[first].names, sites[first].adds
    if alike != (*model_of, _described(read_by.sites[first].get(modules[first][0]))):
      raise UserError(
        f'sites {sites[first].label} and {site.label} at the same place of {count} stages: '
        'expected sites that are alike'
      )
    names.append(name if name in tree else '')
  between = read_by.streams[::size]
  for stream in between:
    if stream != between[0]:
      raise UserError(
        f'streams of {example_shapes(between[0])} and {example_shapes(stream)} between {count} '
        f'stages of {kind}: expected one shape'
      )
  if not any(names):
    raise UserError(f'{kind} in {count} stages: expected sites with parameters')
  return Staging(pipeline, tuple(tuple(names[i : i + size]) for i in range(0, len(sites), size)))


def _modules(model):
  """Returns for each site its module's name, and what else makes the module."""
  modules = []

  def read(module):
    for site in module.sites:
      fields = [f.name for f in dataclasses.fields(site) if f.name not in ('parent', 'name')]
      modules.append((site.name, (type(site), [getattr(site, name) for name in fields])))

  jax.eval_shape(lambda key: model.init(key, method=read), jax.random.key(0))
  return modules


def _described(tree):
  return [(path, leaf.shape, leaf.dtype) for path, leaf in jax.tree.leaves_with_path(tree)]


def stack(stages: Staging, tree: PyTree) -> PyTree:
  """Returns `tree` with every pool in it, and all that is like one, as a `Staged`: a whole state,
  say."""
  devices, repeats = stages.pipeline.devices, stages.pipeline.repeats
  names = [name for stage in stages.names for name in stage if name]
  is_pool = lambda node: isinstance(node, dict) and all(name in node for name in names)

  def in_order(*leaves):
    numpy = np if isinstance(leaves[0], np.ndarray) else jnp
    whole = numpy.stack(leaves)
    return whole.reshape(repeats, devices, *whole.shape[1:]).swapaxes(0, 1)

  def staged(pool):
    if not is_pool(pool):
      return pool
    places = []
    for own in zip(*stages.names):
      places.append(jax.tree.map(in_order, *(pool[name] for name in own)) if own[0] else {})
    ends = {name: part for name, part in pool.items() if name not in names}
    return Staged(ends, tuple(places))

  return jax.tree.map(staged, tree, is_leaf=is_pool)


def unstack(stages: Staging, tree: PyTree) -> PyTree:
  """Returns `tree` with every `Staged` in it as a pool again."""
  is_staged = lambda node: isinstance(node, Staged)

  def pool(node):
    if not is_staged(node):
      return node
    whole = dict(node.ends)
    for place, own in zip(node.stages, zip(*stages.names)):
      for stage, name in enumerate(own):
        repeat, device = divmod(stage, stages.pipeline.devices)
        if name:
          whole[name] = jax.tree.map(lambda leaf, d=device, r=repeat: leaf[d, r], place)
    return whole

  return jax.tree.map(pool, tree, is_leaf=is_staged)


@cached(maxsize=32)
def pool_specs(model: Any, pipeline: Pipeline, example: Shapes) -> Staged:
  """Returns how a staged pool is laid out over `pipe`: a `Staged` of `PartitionSpec`."""
  stages = staging(model, pipeline, example)
  init = lambda x: stack(stages, model.init(jax.random.key(0), x))['params']
  shapes = jax.eval_shape(init, example)
  everywhere = jax.tree.map(lambda _: PartitionSpec(), shapes.ends)
  return Staged(everywhere, jax.tree.map(lambda _: PartitionSpec(PIPE), shapes.stages))


@functools.lru_cache(maxsize=32)
def check_optimizer(optimizer: optax.GradientTransformation) -> None:
  """Raises `UserError` for an optimizer that does other things to stacked leaves than to the same
  leaves apart, as one that divides by the norm of each leaf; found by trying it on a few numbers.
  """
  stages = Staging(Pipeline(2, 1), (('first',), ('second',)))
  random = np.random.default_rng(0)
  sizes = np.array([1, 9], np.float32)  # two leaves whose norms differ
  pools = [dict(zip(('first', 'second'), pool)) for pool in _normal(random, (4, 2, 4, 3), sizes)]

  def state_after(form):
    params = form(pools[0])
    state = optimizer.init(params)
    for gradient in pools[1:]:
      updates, state = optimizer.update(form(gradient), state, params)
      params = jax.tree.map(jnp.add, params, updates)
    return params, state

  apart, stacked = jax.jit(lambda: (state_after(dict), state_after(lambda p: stack(stages, p))))()
  wanted = stack(stages, apart)
  alike = jax.tree.structure(wanted) == jax.tree.structure(stacked)
  pairs = zip(*map(jax.tree.leaves, (wanted, stacked)))
  if not alike or any(a.shape != b.shape or not np.allclose(a, b, rtol=1e-5) for a, b in pairs):
    raise UserError(
      'an optimizer that does not treat all numbers of the pool alike, in a pipeline: expected an '
      'elementwise one, such as sgd or adamw'
    )


def _normal(random, shape, sizes):
  return (random.normal(size=shape) * sizes.reshape(-1, 1, 1)).astype(np.float32)


def layout_of(model: Any, pipeline: Pipeline | None, mesh: Mesh, example: Shapes) -> PyTree:
  """Returns the layout of a pool on a mesh: in stages, or as `layout.pool_specs` says."""
  if pipeline is not None:
    return pool_specs(model, pipeline, example)
  return layout.stored(layout.pool_specs(model, mesh, example))


def on_mesh(model: Any, pipeline: Pipeline | None, tree: PyTree, example: Shapes) -> PyTree:
  """Returns anything that holds pools in the form in which a mesh holds it: with stages stacked, if
  there are some."""
  return tree if pipeline is None else stack(staging(model, pipeline, example), tree)


def ordinary(model: Any, pipeline: Pipeline | None, tree: PyTree, example: Shapes) -> PyTree:
  """Returns what `on_mesh` gave as it was."""
  return tree if pipeline is None else unstack(staging(model, pipeline, example), tree)


def ordinary_specs(shapes: PyTree, mesh: Mesh) -> PyTree:
  """Returns how a pool lies on the devices of a pipeline while it is not in stages: in parts, which
  are no stages, so that no device has all of it. A leaf that has no axis to divide is whole."""
  size = mesh.shape[PIPE]

  def spec(leaf: jax.ShapeDtypeStruct) -> PartitionSpec:
    axes = [i for i, length in enumerate(leaf.shape) if length % size == 0]
    if not axes:
      return PartitionSpec()
    return PartitionSpec(*[None] * max(axes, key=lambda i: leaf.shape[i]), PIPE)

  return jax.tree.map(spec, shapes)
