"""What a training measured since the last point of its curves: a stop between two points keeps it.

point ── steps, steps ──▶ stop, saved with the checkpoint ──▶ steps ──▶ point over all of them
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

STEPS_SECONDS = 5.0  # of the steps between two looks at whether the run is to stop


class Pending:
  """Metrics of the steps since the last point, and the seconds that they took.

  >>> import json
  >>> pending = Pending()
  >>> pending.add({'loss': np.float32([[0.1], [0.2]])}, seconds=1.5)
  >>> again = Pending(json.loads(json.dumps(pending.notes())))
  >>> again.add({'loss': np.float32([[0.3]])}, seconds=0.5)
  >>> again.num_steps, again.seconds, again.taken()['loss'].ravel().tolist() == [
  ...   *map(float, np.float32([0.1, 0.2, 0.3]))
  ... ]
  (3, 2.0, True)
  >>> again.num_steps, again.notes()
  (0, {})

  Args:
    notes: what `notes` gave before the run was stopped.
  """

  def __init__(self, notes: Mapping[str, Any] | None = None):
    leaves = (notes or {}).get('leaves', [])
    arrays = [np.array(leaf['values'], leaf['dtype']).reshape(leaf['shape']) for leaf in leaves]
    self._parts: list[list[np.ndarray]] = [arrays] if arrays else []
    self.seconds: float = (notes or {}).get('seconds', 0.0)

  @property
  def num_steps(self) -> int:
    """The steps since the last point."""
    return sum(len(leaves[0]) for leaves in self._parts)

  def add(self, metrics: PyTree, seconds: float) -> None:
    """Adds the metrics of some steps, each leaf [steps, ...]."""
    leaves, self._form = jax.tree.flatten(metrics)
    self._parts.append(leaves)
    self.seconds += seconds

  def taken(self) -> PyTree:
    """Returns the metrics of all steps since the last point, and begins anew."""
    leaves = [np.concatenate(parts) for parts in zip(*self._parts, strict=True)]
    self._parts, self.seconds = [], 0.0
    return jax.tree.unflatten(self._form, leaves)

  def notes(self) -> dict[str, Any]:
    """Returns the same as JSON values, {} at a point."""
    if not self._parts:
      return {}
    arrays = [np.concatenate(parts) for parts in zip(*self._parts, strict=True)]
    leaves = [
      {'dtype': str(leaf.dtype), 'shape': leaf.shape, 'values': leaf.ravel().tolist()}
      for leaf in arrays
    ]
    return {'leaves': leaves, 'seconds': self.seconds}


class Pace:
  """How many steps are taken between two looks at whether the run is to stop.

  Several processes take as many as they may: each of them measures other seconds.

  >>> pace = Pace()
  >>> pace.steps(100), pace.measured(1, seconds=0.1), pace.steps(100)
  (1, None, 50)
  """

  def __init__(self) -> None:
    self._most = 1

  def steps(self, count: int) -> int:
    """Returns how many of `count` steps are taken at once."""
    return count if jax.process_count() > 1 else min(count, self._most)

  def measured(self, steps: int, seconds: float) -> None:
    """Learns how long some steps took; the first ones compile."""
    self._most = max(1, int(STEPS_SECONDS * steps / max(seconds, 1e-9)))
