"""How good a compressed network is, what is left of it, and what it costs when cut out."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Bool, PyTree

from additive_jax.batches import rows
from additive_jax.compress import cutting, exported
from additive_jax.compress.levels import Gates, Level, Weights
from additive_jax.compress.noise import KERNEL
from additive_jax.experiments.arms import Trained
from additive_jax.experiments.compress.tables import EXPORTED, GRADUAL, UNTUNED, VARIATIONAL
from additive_jax.experiments.session import Session
from additive_jax.files.rundir import WRITABLE, user_errors
from additive_jax.gates.structure import Structure
from additive_jax.parallel import processes

log = logging.getLogger('additive_jax')

RECEIPT_EXAMPLES = 256


@dataclasses.dataclass(frozen=True)
class Network:
  """A network that has lost something.

  Attributes:
    params: its pool, on the host.
    structure: its gates.
    units: as in `levels.Pruned`.
    stays: what is not removed, by layer or space; {} where nothing is.
    histogram: of log α, where noise was learnt.
  """

  params: PyTree
  structure: Structure
  units: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  stays: Mapping[str, Bool[np.ndarray, '...']] = dataclasses.field(default_factory=dict)
  histogram: list[int] | None = None


def judge(session: Session, level: Level, trained: Trained, network: Network) -> dict[str, Any]:
  """Returns the record of a network; what learnt noise and gradual pruning leave is exported."""
  name, structure = trained.arm.name, network.structure
  (variables,) = session.with_own_statistics([{'params': network.params}], [structure])
  scores = session.evaluate(variables, [structure])
  x = rows(session.test[0], slice(RECEIPT_EXAMPLES))
  smaller = cutting.cut(session.model, variables, structure, network.units or None, x)
  receipt = cutting.receipt(smaller, session.model, variables, x)
  if receipt.max_difference > 1e-3:
    difference = receipt.max_difference
    log.warning('%s of seed %d: cut out, outputs differ by %g', name, trained.seed, difference)
  cost = cutting.cost(smaller.model, smaller.variables, rows(x, slice(1)))
  remains = _left(level, network.stays)
  if isinstance(
    level, Weights
  ):  # those of the mask, whether or not another one reads what they give
    nonzero = sum(count for count, _ in remains.values())
  else:
    nonzero = _num_weights(smaller.variables['params'])
  record = {
    **{name: float(values[0]) for name, values in scores.scores.items()},
    'structure': str(smaller.structure),
    'nonzero': nonzero,
    'weights': _num_weights(network.params),
    'flops': cost.flops,
    'bytes': cost.bytes,
    'receipt': receipt.max_difference,
    'left': remains,
  }
  if not name.startswith((VARIATIONAL, GRADUAL)) or name == UNTUNED:
    return record
  if processes.is_primary():
    notes = {'receipt': dataclasses.asdict(receipt), 'cost': cost._asdict()}
    _export(session, smaller, f'{name}-seed{trained.seed}', notes)
  return record | ({'histogram': network.histogram} if name == VARIATIONAL else {})


def _export(session, smaller, name, notes):
  """Writes the network that was cut out, with its receipt and costs."""
  folder = session.rundir.path / EXPORTED
  with user_errors('write', folder, WRITABLE):
    folder.mkdir(exist_ok=True)
    if (folder / name).exists():  # of a run that was killed before its record
      shutil.rmtree(folder / name)
  exported.export(smaller, folder / name, notes=notes)


def _num_weights(params) -> int:
  """The number of weights in all kernels of a pool."""
  leaves = flatten_dict(params, sep='/')
  return sum(int(np.size(leaf)) for name, leaf in leaves.items() if name.endswith(KERNEL))


def _left(level, stays) -> dict[str, list[int]]:
  """How many of each layer stay, and how many there were: by name, for gates by gate."""
  if isinstance(level, Gates):
    on = next(iter(stays.values()), np.ones(len(level.names), bool))
    return {name: [int(bit), 1] for name, bit in zip(level.names, on)}
  sizes = {name: int(np.prod(shape)) for name, shape in level.shapes}
  return {n: [int(stays[n].sum()) if stays else size, size] for n, size in sizes.items()}
