"""Cascades of two structures of one pool: the dear one is asked where the cheap one is unsure.

An example goes on to the dear structure where the confidence of the cheap one lies in a window. The
two share the sites before the first whose gates differ, so the stream after these is computed once:

    embed ─ shared sites ─┬─ cheap sites ─ readout ─ confident? ─ answer
                          └─ dear sites ─ readout ─ answer        where it goes on

Sources: Viola & Jones 2001 (cascades); Teerapittayanon et al. 2016 (arXiv:1709.01686, BranchyNet),
of exits of one network; Wang et al. 2022 (arXiv:2012.01988), of cascades of an ensemble.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from additive_jax.batches import num_examples, rows, shapes_of
from additive_jax.errors import UserError
from additive_jax.gates.structure import Structure, StructureLike, parse
from additive_jax.models.additive import (
  Inputs,
  canonical,
  embed,
  gate_names,
  initial_shapes,
  readout,
  sites_of,
  step,
)
from additive_jax.models.contract import check_pool
from additive_jax.models.costs import measure
from additive_jax.models.flops import count_flops
from additive_jax.run.curve import CONFIDENCES, Costs, Curve, Window, confidence_of, curve_of
from additive_jax.run.evaluate import as_batch
from additive_jax.run.expected import check_task, expected_of
from additive_jax.run.objectives import LossFunction
from additive_jax.run.tasks import Task, added_up, task_of

BATCH = 512  # examples that are seen at once
ALL = Window()


class Answer(NamedTuple):
  """What a cascade says of a batch.

  Attributes:
    log_probabilities: of the classes.
    went_on: whether the dear structure was asked.
  """

  log_probabilities: Float[np.ndarray, 'B C']
  went_on: Bool[np.ndarray, 'B']


class CascadeScores(NamedTuple):
  """How a cascade does on some examples.

  Attributes:
    scores: loss and metrics by name.
    share: of the examples that went on.
    flops: the mean of an example's.
  """

  scores: dict[str, float]
  share: float
  flops: float


@dataclasses.dataclass(frozen=True)
class Cascade:
  """Two structures of one pool, of which the dear one is asked where the cheap one is unsure.

  It is for tasks whose examples have one label each. Wherever a method takes `variables`, they are
  `{'params': pool}`, or a pair of those, one for each structure: two networks that were trained
  alone, or BatchNorms with the statistics of each structure. Such a pair shares no work.

  >>> model, x = aj.models.MLP(3, width=4, hidden=8, num_classes=3), np.eye(5, 6, dtype=np.float32)
  >>> pool, y = jax.jit(model.init)(jax.random.key(0), x), np.arange(5) % 3
  >>> cascade = Cascade('100', '111')
  >>> curve = cascade.curve(model, pool, (x, y))
  >>> chosen = dataclasses.replace(cascade, window=curve.cheapest())
  >>> chosen.evaluate(model, pool, (x, y)).scores['loss'] <= curve.dear['loss'] + 1e-6
  True
  >>> chosen(model, pool, x).log_probabilities.shape
  (5, 3)

  Attributes:
    cheap, dear: anything `Space.parse` takes.
    window: of the confidences with which an example goes on; by default all do.
    confidence: 'probability', the largest of the cheap structure's, or 'margin', its lead over the
      second largest.
    average: whether an example that goes on is answered by the mean of both structures'
      probabilities in place of the dear one's.
  """

  cheap: StructureLike
  dear: StructureLike
  window: Window = ALL
  confidence: str = 'probability'
  average: bool = False

  def __post_init__(self):
    if self.confidence not in CONFIDENCES:
      known = ', '.join(CONFIDENCES)
      raise UserError(f'confidence {self.confidence!r}: expected one of {known}')

  def __call__(self, model: Any, variables: PyTree, x: Inputs) -> Answer:
    """Returns the answers to a batch; the dear structure runs on the examples that go on alone,
    from the stream that both share.

    Their number is rounded up to a power of two, for few programs. Not for compiled code, since the
    number is not known before it runs.
    """
    two = self._two(model, variables, x)
    h, cheap = two.begin(x)
    said, went_on = np.array(cheap), self._goes_on(cheap)
    chosen = np.flatnonzero(went_on)
    if not len(chosen):
      return Answer(said, went_on)
    size = min(len(said), 1 << (len(chosen) - 1).bit_length())
    some = np.resize(chosen, size)  # the first ones again, where it is rounded up
    dear = np.asarray(two.go_on(rows(x, some), rows(h, some)))[: len(chosen)]
    said[chosen] = _mean(said[chosen], dear) if self.average else dear
    return Answer(said, went_on)

  def costs(self, model: Any, x: Inputs, *, apart: bool = False) -> Costs:
    """Returns the FLOPs of both structures and of what they share, for inputs such as `x`.

    >>> model, x = aj.models.MLP(3, width=4, hidden=8, num_classes=3), np.ones((1, 6), np.float32)
    >>> costs, space = Cascade('100', '111').costs(model, x), aj.measure(model, x)
    >>> costs.dear - costs.shared < space.flops('111') - space.gates[0].flops
    True

    Args:
      apart: whether they are of two pools, and share nothing.
    """
    x = shapes_of(x, 1)
    cheap, dear = self._structures(model)
    flops = measure(model, x).costs([cheap, dear])[0]
    if apart:
      return Costs(float(flops[0]), float(flops[1]), 0.0)
    begin = functools.partial(_begun, model, dear, shared_sites(model, cheap, dear))
    shared = count_flops(begin, initial_shapes(model, x), x, of='the sites that structures share')
    return Costs(float(flops[0]), float(flops[1]), shared)

  def curve(
    self,
    model: Any,
    variables: PyTree,
    batch: Any,
    *,
    task: str | Task | LossFunction = 'classification',
    two_sided: bool = False,
    points: int = 256,
  ) -> Curve:
    """Returns what each window would cost and score on a batch, best the validation split's.

    Args:
      batch: (x [N, ...], y [N, ...]), or a split in memory.
      task: a classification.
      two_sided: also windows that begin above 0: what the cheap structure is least sure of may be
        what the dear one does not know either.
      points: thresholds that are looked at, at most; spread evenly over the examples.
    """
    judged = self._judged(model, variables, batch, task)
    costs = self.costs(model, as_batch(batch)[0], apart=_is_pair(variables))
    curve = curve_of(
      judged.confidence,
      judged.stays,
      judged.goes_on,
      functools.partial(judged.task.finish, facts=judged.facts),
      two_sided=two_sided,
      points=points,
    )
    flops, dear = costs.expected(curve.share), judged.scores(judged.dear)
    return dataclasses.replace(curve, flops=flops, dear=dear, task=judged.task)

  def evaluate(
    self,
    model: Any,
    variables: PyTree,
    batch: Any,
    *,
    task: str | Task | LossFunction = 'classification',
  ) -> CascadeScores:
    """Returns loss and metrics of the cascade on a batch, and what it costs there.

    Args:
      batch: (x [N, ...], y [N, ...]), or a split in memory.
      task: a classification.
    """
    judged = self._judged(model, variables, batch, task)
    goes_on = self.window.holds(judged.confidence)
    both = zip(judged.stays, judged.goes_on)
    scores = judged.scores([np.where(goes_on[:, None], after, before) for before, after in both])
    costs = self.costs(model, as_batch(batch)[0], apart=_is_pair(variables))
    share = float(goes_on.mean())
    return CascadeScores(scores, share, costs.expected(share))

  def _goes_on(self, cheap):
    return self.window.holds(np.asarray(confidence_of(cheap, self.confidence)))

  def _structures(self, model) -> tuple[Structure, Structure]:
    num_gates = len(gate_names(model))
    return parse(self.cheap, num_gates), parse(self.dear, num_gates)

  def _two(self, model, variables, x) -> _Two:
    structures, apart = self._structures(model), _is_pair(variables)
    pools = tuple(variables) if apart else (variables, variables)
    for structure, pool in zip(structures, pools):
      check_pool(model, pool, x, structure)
    if apart:
      return _Two(model, structures, pools, 0, True)
    return _Two(model, structures, pools, shared_sites(model, *structures), False)

  def _judged(self, model, variables, batch, task) -> _Judged:
    """Returns what both structures say of examples, as the task judges it."""
    task = task_of(task)
    if task.name != 'classification':
      raise UserError(f'a cascade of a {task.name or "task of your own"}: expected classification')
    x, y = jax.tree.map(np.asarray, as_batch(batch))
    expected_of(model, task, rows(x, slice(1))).check(x, y, 'batch')
    check_task(model, task, rows(x, slice(BATCH)), y)
    two, judge = self._two(model, variables, rows(x, slice(BATCH))), jax.jit(task.statistics)
    every: list[list[Any]] = []
    for start in range(0, num_examples(x), BATCH):
      x_b, y_b = rows((x, y), slice(start, start + BATCH))
      h, cheap = two.begin(x_b)
      dear = two.go_on(x_b, h)
      parts = [judge(outputs, y_b) for outputs in (cheap, dear, _mean(cheap, dear))]
      every.append(jax.device_get([*parts, confidence_of(cheap, self.confidence)]))
    join = lambda *leaves: np.concatenate(leaves)
    of_cheap, of_dear, of_both, confidence = jax.tree.map(join, *every)
    on = of_both if self.average else of_dear
    return _Judged(task, task.facts(y), confidence, of_cheap, on, of_dear)


class _Judged(NamedTuple):
  """What each example adds to the sums of each score, [N, K].

  Attributes:
    task, facts: what makes scores of sums.
    confidence: of the cheap structure.
    stays, goes_on: where the cheap structure answers, and where the example goes on.
    dear: where the dear structure answers by itself.
  """

  task: Task
  facts: Any
  confidence: Float[np.ndarray, 'N']
  stays: Sequence[Any]
  goes_on: Sequence[Any]
  dear: Sequence[Any]

  def scores(self, parts: Sequence[Any]) -> dict[str, float]:
    """Returns loss and metrics by name."""
    found = self.task.finish(added_up(parts), self.facts)
    return {name: float(value) for name, value in found.items()}


@dataclasses.dataclass(frozen=True)
class _Two:
  """The two structures with their pools; they have the stream after `shared` sites in common, or,
  where they are apart, nothing."""

  model: Any
  structures: tuple[Structure, Structure]
  pools: tuple[PyTree, PyTree]
  shared: int
  apart: bool

  def begin(self, x: Inputs) -> tuple[Any, Float[Array, 'B C']]:
    """Returns the shared stream, and what the cheap structure says."""
    (cheap, _), (pool, _) = self.structures, self.pools
    h = _begun(self.model, cheap, self.shared, pool, x)
    return h, _ended(self.model, cheap, self.shared, pool, h)

  def go_on(self, x: Inputs, h: Any) -> Float[Array, 'B C']:
    """Returns what the dear structure says of inputs, of which this is the shared stream."""
    (_, dear), (_, pool) = self.structures, self.pools
    if self.apart:
      h = _begun(self.model, dear, 0, pool, x)
    return _ended(self.model, dear, self.shared, pool, h)


def shared_sites(model: Any, cheap: StructureLike, dear: StructureLike) -> int:
  """Returns after how many sites two structures still have the same stream.

  >>> shared_sites(aj.models.MLP(3, width=4, hidden=8, num_classes=2), '101', '111')
  1

  Raises:
    UserError: where they are one network.
  """
  num_gates = len(gate_names(model))
  both = np.array([parse(structure, num_gates).bits for structure in (cheap, dear)])
  first, second = canonical(model, both)
  for i, site in enumerate(sites_of(model)):
    if (first[site.gates] != second[site.gates]).any():
      return i
  raise UserError(f'a cascade from {cheap} to {dear}, which are one network: expected two')


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _begun(model, structure, stop, variables, x):
  """Returns the stream of a structure after its first `stop` sites."""
  return _stepped(model, structure, range(stop), variables, embed(model, variables, x))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _ended(model, structure, start, variables, h):
  """Returns the logarithms of a structure's probabilities, from its stream after `start` sites."""
  h = _stepped(model, structure, range(start, len(sites_of(model))), variables, h)
  return jax.nn.log_softmax(readout(model, variables, h).astype(jnp.float32))


def _stepped(model, structure, numbers, variables, h):
  for i in numbers:
    h = step(model, variables, i, h, structure.bits[sites_of(model)[i].gates])
  return h


def _mean(first, second):
  """Returns the logarithms of the mean of two structures' probabilities."""
  of = np.logaddexp if isinstance(first, np.ndarray) else jnp.logaddexp
  return of(first, second) - np.float32(math.log(2))


def _is_pair(variables: PyTree | Sequence[PyTree]) -> bool:
  """Returns whether there is a pool for each of the two structures.

  Raises:
    UserError: for another number of them.
  """
  if isinstance(variables, Mapping):
    return False
  if isinstance(variables, list | tuple) and len(variables) == 2:
    return True
  given = f'{len(variables)} pools' if isinstance(variables, list | tuple) else repr(variables)[:80]
  raise UserError(f"a cascade of {given}: expected {{'params': pool}}, or two of them")
