"""The generations of a search, kept in a journal, so that a search that was killed goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from additive_jax.errors import UserError
from additive_jax.files.journal import Journal
from additive_jax.gates.structure import Structure, bits_of
from additive_jax.run.evaluate import Evaluation
from additive_jax.search.methods import Evaluated


class Generations:
  """The structures that a search has evaluated, a line of a journal for each generation.

  A line is `{"structures": ["101", …], "loss": [[0.5, 0.6], …], "accuracy": …}`: the values of each
  structure in every pool that is searched. A damaged line is dropped with all that follow it, which
  rest on it, so that the search goes on from the line before.

  Args:
    journal: where the lines are, and where new ones go.
    num_gates: of a structure.
    write: whether this process writes new lines.

  >>> import tempfile
  >>> folder = tempfile.TemporaryDirectory()
  >>> journal = Journal(f'{folder.name}/search.jsonl')
  >>> pools = [Evaluation(np.array([0.5]), np.array([0.75])), Evaluation(np.ones(1), np.ones(1))]
  >>> Generations(journal, num_gates=2).add(np.array([[True, False]]), pools).loss.tolist()
  [0.75]
  >>> Generations(journal, num_gates=2).means().bits.tolist()  # of what the journal has
  [[True, False]]
  >>> folder.cleanup()
  """

  def __init__(self, journal: Journal, num_gates: int, *, write: bool = True):
    self._journal, self._num_gates, self._write = journal, num_gates, write
    if write:
      journal.keep_whole()
    self._lines = journal.records()
    known = self._joined('structures')
    if len(set(known)) < len(known):
      twice = next(structure for structure in known if known.count(structure) > 1)
      raise UserError(f'{journal.path}: structure {twice} occurs twice; expected each once')

  def __len__(self) -> int:
    """Returns the number of structures."""
    return sum(len(line['structures']) for line in self._lines)

  def add(self, bits: Bool[np.ndarray, 'S n'], pools: Sequence[Evaluation]) -> Evaluation:
    """Adds a generation.

    Args:
      bits: its structures.
      pools: their loss and accuracy in each pool; more than S where a generation was filled up.

    Returns:
      Their means over the pools.
    """
    line: dict[str, list[Any]] = {'structures': [str(Structure(tuple(row))) for row in bits]}
    for key in Evaluation._fields:
      values = [np.asarray(getattr(pool, key))[: len(bits)] for pool in pools]
      line[key] = np.array(values).T.tolist()
    if self._write:
      self._journal.append(line)
    self._lines.append(line)
    return Evaluation(*(_means(line[key]) for key in Evaluation._fields))

  def by_pool(self) -> tuple[Bool[np.ndarray, 'S n'], Evaluation]:
    """Returns all structures in order, and their loss and accuracy [pools, S]."""
    values = (np.array(self._joined(key)).T for key in Evaluation._fields)
    return bits_of(self._joined('structures'), self._num_gates), Evaluation(*values)

  def means(self) -> Evaluated:
    """Returns all structures in order with means over the pools, for a search to go on from."""
    bits = bits_of(self._joined('structures'), self._num_gates)
    return Evaluated(bits, *(_means(self._joined(key)) for key in Evaluation._fields))

  def _joined(self, key):
    return [value for line in self._lines for value in line[key]]


def _means(values):
  return np.array([np.mean(row) for row in values])
