"""The generations of a search, kept in a journal, so that a search that was killed goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from additive_jax.errors import UserError
from additive_jax.files.journal import Journal
from additive_jax.gates.networks import canonical, first_places
from additive_jax.gates.structure import Space, Structure
from additive_jax.run.evaluate import Evaluation
from additive_jax.run.tasks import Task
from additive_jax.search.methods import Evaluated

CLASSIFICATION = Task('classification')


class Generations:
  """The structures that a search has evaluated, a line of a journal for each generation.

  A line is `{"structures": ["101", …], "loss": [[0.5, 0.6], …], "accuracy": …}`: the scores of each
  structure in every pool that is searched. Of structures that are one network, which a search of an
  earlier version may have evaluated, the first counts. A damaged line is dropped with all that
  follow it, which rest on it, so that the search goes on from the line before.

  Args:
    journal: where the lines are, and where new ones go.
    space: the gates of the structures.
    task: says which scores there are, and by which of them structures are compared.
    write: whether this process writes new lines.

  >>> import tempfile
  >>> folder = tempfile.TemporaryDirectory()
  >>> journal = Journal(f'{folder.name}/search.jsonl')
  >>> pools = [Evaluation(np.full(1, loss), {'accuracy': np.zeros(1)}) for loss in (0.5, 1.0)]
  >>> space = aj.models.MLP(2, width=4, hidden=4, num_classes=2).space
  >>> Generations(journal, space).add(np.array([[True, False]]), pools).tolist()
  [0.75]
  >>> Generations(journal, space).means().bits.tolist()  # of what the journal has
  [[True, False]]
  >>> folder.cleanup()
  """

  def __init__(
    self,
    journal: Journal,
    space: Space,
    task: Task = CLASSIFICATION,
    *,
    write: bool = True,
  ):
    self._journal, self._space, self._task, self._write = journal, space, task, write
    if write:
      journal.keep_whole()
    self._lines = [of_earlier(line, task.scores) for line in journal.records()]
    known = self._joined('structures')
    if len(set(known)) < len(known):
      twice = next(structure for structure in known if known.count(structure) > 1)
      raise UserError(f'{journal.path}: structure {twice} occurs twice; expected each once')

  def __len__(self) -> int:
    """Returns the number of networks."""
    return len(self._networks()[0])

  def add(
    self, bits: Bool[np.ndarray, 'S n'], pools: Sequence[Evaluation]
  ) -> Float[np.ndarray, 'S']:
    """Adds a generation.

    Args:
      bits: its structures.
      pools: their scores in each pool; more than S where a generation was filled up.

    Returns:
      What they cost, by their means over the pools.
    """
    # A search that goes on from networks evaluated under several names may ask for some again.
    known, texts = set(self._joined('structures')), [str(Structure(tuple(row))) for row in bits]
    new = [place for place, text in enumerate(texts) if text not in known]
    line: dict[str, list[Any]] = {'structures': [texts[place] for place in new]}
    means = {}
    for key in self._task.scores:
      values = np.array([np.asarray(pool.scores[key])[: len(bits)] for pool in pools]).T
      line[key], means[key] = values[new].tolist(), _means(values.tolist())
    if self._write:
      self._journal.append(line)
    self._lines.append(line)
    return self._task.cost(means)

  def by_pool(self) -> tuple[Bool[np.ndarray, 'S n'], Evaluation]:
    """Returns all networks in order, and their scores [pools, S]."""
    bits, first = self._networks()
    scores = {key: np.array(self._joined(key))[first].T for key in self._task.scores}
    return bits, Evaluation.of(scores)

  def means(self) -> Evaluated:
    """Returns all networks in order, with what they cost by their means over the pools; a search
    goes on from there."""
    bits, first = self._networks()
    by = self._task.rank_by
    return Evaluated(bits, self._task.cost({by: _means(self._joined(by))[first]}))

  def _networks(self):
    """Returns the networks in canonical form, and the place of each among the structures."""
    bits = canonical(self._space, self._joined('structures'))
    first = first_places(bits)
    return bits[first], first

  def _joined(self, key):
    return [value for line in self._lines for value in line[key]]


def _means(values):
  return np.array([np.mean(row) for row in values])


def of_earlier(record: Mapping[str, Any], scores: Sequence[str]) -> dict[str, Any]:
  """Returns a record of a run with the names that its scores have now. Earlier versions called the
  metric of every task accuracy: of a regression it was one minus the loss.

  >>> of_earlier({'loss': 0.25, 'accuracy': 0.75}, ('loss', 'r2'))
  {'loss': 0.25, 'accuracy': 0.75, 'r2': 0.75}

  Args:
    record: of a journal, with scores, and with dicts of scores.
    scores: the names; what an earlier version has not measured is NaN.
  """
  renamed = {k: of_earlier(v, scores) if isinstance(v, dict) else v for k, v in record.items()}
  if 'accuracy' in scores:
    return renamed
  for key in [key for key in record if key.endswith('accuracy')]:
    values, start = record[key], key.removesuffix('accuracy')
    for i, score in enumerate(scores[1:]):
      unknown = jax.tree.map(lambda _: float('nan'), values)
      renamed.setdefault(f'{start}{score}', unknown if i else values)
  return renamed
