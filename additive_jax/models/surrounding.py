"""How the parts of a network are run: as they are, or by a function around each of them, such as
one that gathers the parameters of the part where devices hold the pool in pieces
(`parallel.layout`); and in which mode, which is what training adds: a dtype, and dropout.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import dataclasses
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from additive_jax.models.convolution import fast_convolutions

Part = int | str  # the number of a site, or one of these
EMBED, READOUT, WHOLE = 'embed', 'readout', 'whole'
DROPOUT = 'dropout'  # the name of its random numbers in Flax
Around = Callable[[nn.Module, Part, PyTree, Callable[[PyTree], Any]], Any]
Rngs = dict[str, PRNGKeyArray]
_AROUND: contextvars.ContextVar[Around | None] = contextvars.ContextVar('around', default=None)


@dataclasses.dataclass(frozen=True, eq=False)
class Mode:
  """What training adds to how the parts of a network are run; judging adds nothing.

  Attributes:
    dtype: of branches, embed and readout: they get their parameters and the stream in it, and what
      they give is cast back. None leaves all as it is.
    dropout: the key of this slot and step; None drops nothing.
    rows: the numbers of the examples in the batch that the key is for; None numbers them from 0.
    share: the number of this device among those that split the batch.
    first_site: the number of the site that the model's first one stands for, of a stage's.
  """

  dtype: Any = None
  dropout: PRNGKeyArray | None = None
  rows: Int[Array, 'B'] | None = None
  share: int | Int[Array, ''] = 0
  first_site: int | Int[Array, ''] = 0

  def key_of(self, part: Part) -> PRNGKeyArray | None:
    """Returns the key of a part: the same whatever other parts run, and on which devices."""
    if self.dropout is None:
      return None
    ends = {EMBED: 0, READOUT: 1, WHOLE: 2}
    number = self.first_site + part + len(ends) if isinstance(part, int) else ends[part]
    return jax.random.fold_in(self.dropout, number)


PLAIN = Mode()
_MODE: contextvars.ContextVar[Mode] = contextvars.ContextVar('mode', default=PLAIN)


@dataclasses.dataclass(frozen=True, eq=False)
class _Running:
  """The part that runs.

  Attributes:
    key: of its dropout.
    calls: how often each of its modules has dropped something.
  """

  key: PRNGKeyArray | None
  calls: collections.Counter[str]


_RUNNING: contextvars.ContextVar[_Running | None] = contextvars.ContextVar('running', default=None)


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


@contextlib.contextmanager
def in_mode(mode: Mode) -> Iterator[None]:
  """Makes the parts of networks that are traced while it is open run in a mode.

  >>> model, x = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3), jnp.ones((2, 6))
  >>> variables = jax.jit(model.init)(jax.random.key(0), x)
  >>> with in_mode(Mode(dtype=jnp.bfloat16)):
  ...   logits = jax.jit(lambda v: aj.run.static(model, v, x, '1'))(variables)
  >>> exact = aj.run.static(model, variables, x, '1')
  >>> logits.dtype.name, bool((logits == exact).all()), bool(jnp.allclose(logits, exact, atol=0.03))
  ('float32', False, True)
  """
  token, running = _MODE.set(mode), _RUNNING.set(None)
  try:
    yield
  finally:
    _RUNNING.reset(running)
    _MODE.reset(token)


def mode() -> Mode:
  """Returns the mode in which parts are run now."""
  return _MODE.get()


def examples(rows: Int[Array, 'b']) -> contextlib.AbstractContextManager[None]:
  """Makes parts run on some examples of the batch that the mode is for, given by their numbers."""
  now = _MODE.get()
  if now.dropout is None:
    return contextlib.nullcontext()
  return in_mode(dataclasses.replace(now, rows=rows if now.rows is None else now.rows[rows]))


def without_dropout() -> contextlib.AbstractContextManager[None]:
  """Makes parts drop nothing, as a teacher's, and keeps the rest of the mode."""
  return in_mode(dataclasses.replace(_MODE.get(), dropout=None))


def run_part(
  model: nn.Module,
  part: Part,
  variables: PyTree,
  run: Callable[[PyTree, Any, Rngs], Any],
  stream: Any,
  *,
  casts: bool = True,
) -> Any:
  """Returns `run(variables, stream, rngs)` in the mode of now, run by what surrounds parts, if
  anything does. What `run` runs in turn is part of this part.

  Args:
    stream: what the part takes, an array or a pytree of them.
    casts: whether parameters, and floats of the stream, are given to the part in the mode's dtype;
      otherwise the part asks for it (`branch_dtype`).
  """
  around, now = _AROUND.get(), _MODE.get()
  widens = not isinstance(part, int)  # what a site gives belongs to a stream, see `models.additive`
  if _RUNNING.get() is not None:
    return run(variables, stream, {})
  key, dtype = now.key_of(part), now.dtype if casts else None
  rngs = {} if key is None else {DROPOUT: jax.random.fold_in(key, now.share)}

  def running(variables: PyTree) -> Any:
    if dtype is None:
      return run(variables, stream, rngs)
    params = cast_floats(variables.get('params', {}), dtype)
    given = run({**variables, 'params': params}, cast_floats(stream, dtype), rngs)
    return cast_floats(given, jnp.float32, of=dtype) if widens else given

  token = _RUNNING.set(_Running(key, collections.Counter()))
  try:
    with fast_convolutions():
      if around is None:
        return running(variables)
      with surrounding(None):
        return around(model, part, variables, running)
  finally:
    _RUNNING.reset(token)


def cast_floats(tree: PyTree, dtype: Any, *, of: Any = jnp.floating) -> PyTree:
  """Returns a pytree with its floats, or those of one dtype, in another dtype.

  >>> cast_floats({'a': jnp.ones(1), 'b': jnp.arange(1)}, jnp.bfloat16)['a'].dtype.name
  'bfloat16'
  """

  def cast(leaf: Any) -> Any:
    if not hasattr(leaf, 'astype') or not jnp.issubdtype(leaf.dtype, of):
      return leaf
    return leaf.astype(dtype)

  return jax.tree.map(cast, tree)


def in_branch_dtype(tree: PyTree) -> PyTree:
  """Returns what a branch computes with, in the dtype of the mode, for sites that add to the stream
  by themselves and so take it as it is. What acts as an array needs `dtype` and `astype`.

  >>> with in_mode(Mode(dtype=jnp.bfloat16)):
  ...   in_branch_dtype(jnp.ones(2)).dtype.name
  'bfloat16'
  """
  dtype = _MODE.get().dtype
  return tree if dtype is None else cast_floats(tree, dtype)


def input_dtype() -> Any:
  """Returns the dtype that embed takes numbers in: that of the mode, float32 without one."""
  return _MODE.get().dtype or jnp.float32


def dropout_key(path: tuple[str, ...]) -> PRNGKeyArray | None:
  """Returns the key of a module that drops something in the part that runs, another for each of its
  calls; None where nothing is dropped. A site has the same keys whatever it is called.

  Args:
    path: of the module in the network.
  """
  running = _RUNNING.get()
  if running is None or running.key is None:
    return None
  name = '/'.join(path[1:])
  call, running.calls[name] = running.calls[name], running.calls[name] + 1
  return jax.random.fold_in(jax.random.fold_in(running.key, zlib.crc32(name.encode())), call)
