"""What a search has evaluated: each network once, kept in a journal, so that a search that was
killed goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float

from additive_jax.errors import UserError
from additive_jax.files.journal import Journal
from additive_jax.gates.networks import canonical
from additive_jax.gates.structure import Space, Structure
from additive_jax.parallel import processes
from additive_jax.search.methods import Evaluated

CHUNK = 256  # networks of one line of a journal: what a kill may lose


class Evaluator(Protocol):
  """What a search asks: the loss of structures, lower is better."""

  def __call__(self, bits: Bool[np.ndarray, 'S n'], share: float) -> Float[np.ndarray, 'S']:
    """Returns the losses of different networks, by a share of the examples, the same ones for
    all."""


class SpentError(Exception):
  """The evaluations that a search may make are used up."""


class Key(NamedTuple):
  """A network, and the share of the examples that it is judged by."""

  structure: str
  share: float


class Evaluations:
  """An evaluator that remembers: equal networks are one result, and each is evaluated once.

  A line of the journal is `{"share": 1.0, "structures": ["101", …], "loss": [0.5, …]}`, after a
  first one that says what the losses are of. A search is a function of what it is told, so one that
  is started again with the journal asks the same questions, has those of before answered at once,
  and ends as if it had never been stopped.

  >>> space = aj.Space((aj.Gate('r'), aj.Gate('a', within='r')))
  >>> judge = Evaluations(lambda bits, share: bits.sum(1) * share, space)
  >>> judge(np.array([[True, True], [False, True], [False, False]])).tolist()
  [2.0, 0.0, 0.0]
  >>> judge.used  # two networks
  2.0

  Args:
    evaluate: gives the losses of networks in canonical form.
    space: the gates.
    journal: where evaluations are kept; None keeps them in memory.
    identity: what the losses are of; a journal of another identity is refused.
    most: evaluations on all examples that may be made; None is any number.

  Attributes:
    used: evaluations that were asked for, on all examples; one by a share counts as that share.
  """

  def __init__(
    self,
    evaluate: Evaluator,
    space: Space,
    journal: Journal | None = None,
    identity: Mapping[str, Any] | None = None,
    most: float | None = None,
  ):
    self._evaluate, self._space, self._journal, self.most = evaluate, space, journal, most
    self._known: dict[Key, float] = {}
    self._asked: dict[Key, None] = {}  # a set that keeps its order
    self.used = 0.0
    if journal is not None:
      self._read(dict(identity or {}))

  def _read(self, identity: dict[str, Any]) -> None:
    assert self._journal is not None
    if processes.is_primary():
      self._journal.keep_whole()
    lines = self._journal.sound()
    if not lines and processes.is_primary():
      self._journal.append({'of': identity})
    if lines and lines[0].get('of') != identity:
      other = lines[0].get('of') or {}
      different = [key for key in identity if other.get(key) != identity[key]] or ['search']
      raise UserError(
        f'{self._journal.path} is of another {", ".join(different)}: expected the journal of the '
        'same search, or a path without a file'
      )
    for line in lines[1:]:
      keys = [Key(text, line['share']) for text in line['structures']]
      self._known |= dict(zip(keys, line['loss']))

  def __call__(self, bits: Bool[np.ndarray, 'S n'], share: float = 1.0) -> Float[np.ndarray, 'S']:
    """Returns the losses of structures; infinity for what is not finite.

    Args:
      bits: the structures, of which several may be one network.
      share: of the examples to judge by, in (0, 1].

    Raises:
      UserError: where the loss of all-on is no number.
      SpentError: when they are more than may still be made; as many as may be are made first.
    """
    bits = canonical(self._space, bits)
    keys = [Key(str(Structure(tuple(row))), float(share)) for row in bits]
    new = {key: row for key, row in zip(keys, bits) if key not in self._asked}
    room = len(new)
    if self.most is not None:
      room = min(room, int((self.most - self.used) / share + 1e-9))
    allowed = dict(list(new.items())[:room])
    self._make([key for key in allowed if key not in self._known], allowed, share)
    self._asked |= dict.fromkeys(allowed)
    self.used += share * len(allowed)
    if room < len(new):
      raise SpentError
    losses = np.array([self._known[key] for key in keys], float)
    if not np.isfinite(losses[bits.all(1)]).all():
      raise UserError(
        f'all gates on have a loss of {losses[bits.all(1)][0]}: expected a number; is each one of '
        'the pool finite?'
      )
    return np.where(np.isfinite(losses), losses, np.inf)

  def _make(self, missing: list[Key], rows: Mapping[Key, Any], share: float) -> None:
    """Evaluates networks and writes them down, a chunk at a time. Chunks begin where those of a
    search that was stopped did, so each is evaluated in the company that it would have had."""
    for start in range(0, len(missing), CHUNK):
      chunk = missing[start : start + CHUNK]
      losses = np.asarray(self._evaluate(np.array([rows[key] for key in chunk]), share), float)
      if losses.shape != (len(chunk),):
        raise UserError(
          f'an evaluator that gave losses of shape {losses.shape} for {len(chunk)} structures: '
          f'expected [{len(chunk)}]'
        )
      if self._journal is not None and processes.is_primary():
        texts = [key.structure for key in chunk]
        self._journal.append({'share': share, 'structures': texts, 'loss': losses.tolist()})
      self._known |= dict(zip(chunk, losses.tolist()))

  def evaluated(self, share: float = 1.0) -> Evaluated:
    """Returns the networks that were asked for, judged by that share of the examples, in order."""
    keys = [key for key in self._asked if key.share == share]
    bits = np.array([[char == '1' for char in key.structure] for key in keys], bool)
    losses = np.array([self._known[key] for key in keys], float)
    return Evaluated(bits.reshape(len(keys), self._space.num_gates), losses)
