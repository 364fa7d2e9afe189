"""The network that is checked, its parts as functions, and what clauses find out about it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, PyTree, Shaped

from additive_jax.batches import num_examples
from additive_jax.gates.structure import Structure
from additive_jax.models.additive import Site, gate_names, sites_of
from additive_jax.models.side import WithSide, call_part, stream_of, with_stream
from additive_jax.run.tasks import Task

# XLA optimises for many fast runs of one program. Here each runs a few times, and these options cut
# what compiling takes to a third, and to a tenth where random numbers are drawn.
CPU_OPTIONS = {'xla_backend_optimization_level': 0, 'xla_cpu_use_fusion_emitters': False}


@dataclasses.dataclass(frozen=True)
class Part:
  """One part of a model as a pure function.

  Attributes:
    name: the part in a sentence: embed, site 'block_00', readout.
    method: from the module and an input or stream to the part's result.
    site: its site, where it is one.
    index: number of that site.
  """

  name: str
  method: Callable[[Any, Any], Any]
  site: Site | None = None
  index: int = 0

  @property
  def title(self) -> str:
    """The name at the start of a sentence."""
    return self.name[:1].upper() + self.name[1:]

  @property
  def keeps_stream(self) -> bool:
    """Whether it is a site whose result must have the stream's shape and dtype."""
    return self.site is not None and self.site.has_residual

  def run(self, variables: PyTree, value: Any, *, model: nn.Module) -> Any:
    """Returns the part's result for an input or stream."""
    return model.apply(variables, value, method=self.method)

  def after(
    self,
    value: PyTree[Shaped[Array | np.ndarray, '...']],
    result: PyTree[Shaped[Array | np.ndarray, '...']],
  ) -> PyTree[Shaped[Array | np.ndarray, '...']]:
    """Returns the stream after the part, from its input and its result."""
    if self.site is None:
      return result
    return with_stream(value, stream_of(value) + result if self.site.adds else result)


def site_part(site: Site, index: int, inner: Sequence[Any] = ()) -> Part:
  """Returns a site with values for its inner gates; () is all of them on."""
  inner = tuple(inner) or (True,) * site.num_inner
  values = () if site.adds else (inner,)
  return Part(
    f'site {site.label!r}',
    lambda module, h: call_part(module.sites[index], h, *values),
    site,
    index,
  )


@dataclasses.dataclass
class Case:
  """A network under check; each clause adds what it finds.

  Attributes:
    model, task, max_structures, seed: the arguments of `testing.check_model`.
    x, y: a few examples of its batch.
    targets: y of the whole batch.
    violations, notes: sentences.
    variables: `{'params': pool}` at init, a NumPy copy.
    moved: the variables at which runs are compared, a step away from init.
    streams: shape and dtype of the stream before each site and before readout, [B, ..., D].
    tolerance: how far apart, relative to the largest, numbers may be that should be equal.
    independent: whether examples do not influence each other, as far as is known.
    programs: by way to run and structure, the outputs as a compiled function of variables and x.
    quick: whether only what shapes and one run of every part show is looked at.
  """

  model: Any
  x: PyTree[Shaped[np.ndarray, 'B ...']]
  y: PyTree[Shaped[np.ndarray, 'B ...']]
  targets: PyTree[Shaped[np.ndarray, 'N ...']]
  task: Task
  max_structures: int
  seed: int
  violations: list[str] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)
  variables: PyTree = None
  moved: PyTree = None
  streams: tuple[Any, ...] = ()
  tolerance: float = 0.0
  independent: bool = True
  programs: dict[str, dict[Structure, Callable[..., Any]]] = dataclasses.field(default_factory=dict)
  quick: bool = False

  def fail(self, text: str) -> bool:
    """Notes a violation; returns False: the clause is broken."""
    self.violations.append(text)
    return False

  @property
  def num_examples(self) -> int:
    """B."""
    return num_examples(self.x)

  @property
  def sites(self) -> tuple[Site, ...]:
    """The sites of the model."""
    return sites_of(self.model)

  @property
  def parts(self) -> tuple[Part, ...]:
    """embed, the sites with all their gates on, and readout."""
    return (
      Part('embed', lambda module, x: module.embed(x)),
      *(site_part(site, i) for i, site in enumerate(self.sites)),
      Part('readout', lambda module, h: call_part(module.readout, h)),
    )

  def sample(self) -> list[Structure]:
    """Returns the structures to compare: all if few, else all-on, all-off, inner gates alone off,
    and random pairs in which each gate is on in one and off in the other."""
    num_gates = len(gate_names(self.model))
    if num_gates < 31 and 1 << num_gates <= self.max_structures:
      return [Structure.from_int(v, num_gates=num_gates) for v in range(1 << num_gates)]
    inner = np.zeros(num_gates, bool)
    for site in self.sites:
      inner[site.inner] = True
    queue = [np.ones(num_gates, bool), np.zeros(num_gates, bool), ~inner]
    rng = np.random.default_rng(self.seed)
    structures: list[Structure] = []
    while len(structures) < self.max_structures:
      if not queue:
        bits = rng.random(num_gates) < 0.5
        queue = [bits, ~bits]
      structure = Structure(tuple(queue.pop(0)))
      if structure not in structures:
        structures.append(structure)
    return sorted(structures, key=str)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns `jax.jit(function)`, compiled for programs that run a few times."""
  return jax.jit(function, compiler_options=_quick_options())


@functools.cache
def _quick_options():
  """Returns options that make compiling quick, where this backend and version of XLA has them; or
  None."""
  if jax.default_backend() != 'cpu':
    return None
  try:
    jax.jit(lambda: 0, compiler_options=CPU_OPTIONS)()
  except jax.errors.JaxRuntimeError:
    return None
  return CPU_OPTIONS


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
  """Returns the leaves of a tree by their path, such as `['block_00']['kernel']`."""
  return {
    jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def size_of(tree: PyTree) -> float:
  """Returns the largest absolute value in a tree of arrays.

  >>> size_of({'a': np.array([1.0, -3.0])})
  3.0
  """
  leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
  return max(float(np.abs(leaf).max(initial=0)) for leaf in leaves)


def far_apart(a: Any, b: Any, scale: float | None = None) -> float:
  """Returns the largest difference relative to `scale` (default: the largest number in a), of a
  stream with a side the most of all arrays; NaN counts as infinite."""
  if isinstance(a, WithSide):
    return max(map(lambda a, b: far_apart(a, b, scale), *map(jax.tree.leaves, (a, b))))
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  scale = size_of(a) if scale is None else scale
  difference = np.abs(a - b).max(initial=0)
  return float(difference / max(scale, 1e-30)) if np.isfinite(difference) else np.inf
