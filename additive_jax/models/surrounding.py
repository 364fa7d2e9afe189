"""How the parts of a network are run: as they are, or by a function around each of them, such as
one that gathers the parameters of the part where devices hold the pool in pieces
(`parallel.layout`).
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
from jaxtyping import PyTree

Part = int | str  # the number of a site, or one of these
EMBED, READOUT, WHOLE = 'embed', 'readout', 'whole'
Around = Callable[[nn.Module, Part, PyTree, Callable[[PyTree], Any]], Any]
_AROUND: contextvars.ContextVar[Around | None] = contextvars.ContextVar('around', default=None)


@contextlib.contextmanager
def surrounding(around: Around | None) -> Iterator[None]:
  """Makes `around` run each part of a network that is traced while it is open.

  >>> def around(model, part, variables, run):
  ...   print(part)
  ...   return run(variables)
  >>> model = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3)
  >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((2, 6)))
  >>> with surrounding(around):
  ...   logits = jax.eval_shape(lambda v: aj.run.static(model, v, jnp.ones((2, 6)), '1'), variables)
  embed
  0
  readout

  Args:
    around: from a model, the part, variables and a function that runs the part on variables, to
      what that gives; None runs parts as they are.
  """
  token = _AROUND.set(around)
  try:
    yield
  finally:
    _AROUND.reset(token)


def is_surrounded() -> bool:
  """Returns whether something runs the parts of the networks that are traced now."""
  return _AROUND.get() is not None


def run_part(model: nn.Module, part: Part, variables: PyTree, run: Callable[[PyTree], Any]) -> Any:
  """Returns `run(variables)`, run by what surrounds parts, if anything does. What `run` runs in
  turn is not surrounded again."""
  around = _AROUND.get()
  if around is None:
    return run(variables)
  with surrounding(None):
    return around(model, part, variables, run)
