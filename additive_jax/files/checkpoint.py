"""Checkpoints that are whole or not there: Orbax underneath, a checksum for every leaf on top.

Every process writes and reads the shards that lie on its own devices, so that no host ever holds a
whole state. Orbax renames a step into place when all of it is on disk: a kill leaves no half
checkpoint. It does not notice bytes that change later. So beside the pytree, `state`, a checkpoint
has `meta`: JSON with a checksum of its own, the model's identity, the caller's notes, and the
dtype, shape and checksum of every leaf.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from additive_jax.errors import UserError
from additive_jax.files import background
from additive_jax.files import keys as keys_
from additive_jax.files import leaves as leaves_
from additive_jax.files.journal import to_plain
from additive_jax.files.rundir import differences
from additive_jax.files.seal import DamagedError

log = logging.getLogger('additive_jax')

Body = dict[str, Any]  # what `meta` says of a checkpoint, as JSON


class Restored(NamedTuple):
  """What `restore` returns.

  Attributes:
    step: of the checkpoint.
    state: placed like the template.
    meta: the caller's notes.
  """

  step: int
  state: PyTree
  meta: dict[str, Any]


class Checkpointer(contextlib.AbstractContextManager['Checkpointer']):
  """Saves and restores the state of a run under `directory`, one sub-directory a step.

  Reading changes nothing on disk. One run writes into a directory, several may read it; every
  process of a run makes the same calls. Also a context manager, which waits for the last save.

    with Checkpointer('runs/a/checkpoints', identity={'model': 'MLP'}) as checkpoints:
      restored = checkpoints.restore(state)
      if restored is not None:
        state = restored.state
      checkpoints.save(100, state)

  Args:
    directory: where the steps are kept; made by the first `save`.
    identity: small dict of JSON values, such as the model's name and gates. A checkpoint of another
      identity is refused.
    max_to_keep: how many of the newest checkpoints stay.
  """

  def __init__(self, directory: str | Path, *, identity: dict[str, Any], max_to_keep: int = 3):
    self.directory = Path(directory).resolve()  # tensorstore takes no `..`
    self._identity = _through_json(identity)
    self._max_to_keep = max_to_keep
    self._manager: ocp.CheckpointManager | None = None
    self._damaged: list[int] = []
    self._last: tuple[int | None, Body | None] = (None, None)

  def save(
    self, step: int, state: PyTree, *, meta: dict[str, Any] | None = None, wait: bool = False
  ) -> None:
    """Saves `state` as checkpoint `step` in the background.

    The state is copied before this returns, so its buffers may be donated at once. The step that
    this object last saved or restored is left as it is when the content is the same; any other
    checkpoint of the same step is replaced.

    Args:
      step: non-negative; newer checkpoints have larger ones.
      state: JAX or NumPy arrays, PRNG keys and numbers. What is not a JAX array spread over all
        processes is saved as the first process has it.
      meta: JSON values that `restore` hands back.
      wait: return only when the checkpoint is on disk.

    Raises:
      UserError: the directory cannot be written.
      ValueError: no leaves, or leaves of zero size or the same dotted name.
    """
    keys = {path: str(leaf.dtype) for path, leaf in _leaves(state).items() if keys_.is_key(leaf)}
    state = jax.tree.map(lambda leaf: leaves_.copied(keys_.key_data(leaf)), state)
    leaves = _leaves(state)
    empty = [path for path, array in leaves.items() if array.size == 0]
    if empty or not leaves_.names(state):
      raise ValueError(f'expected a state with leaves, none of zero size; found {empty or state}')
    records = leaves_.describe(leaves)
    records |= {path: records[path] | {'keys': kind} for path, kind in keys.items()}
    body = {'step': step, 'identity': self._identity, 'meta': meta or {}, 'leaves': records}
    body = _through_json(body)
    last_step, last_body = self._last
    # Process 0 decides for all: the notes of the others may differ, and are not stored.
    same = multihost_utils.broadcast_one_to_all(np.array(body == last_body))
    if step != last_step or not same:
      self._write(step, state, body)
    if wait:
      self.wait()

  def restore(
    self, template: PyTree, *, fields: Sequence[str] = (), at_most: int | None = None
  ) -> Restored | None:
    """Returns the newest sound checkpoint, or None when there is none at all.

    Every leaf's dtype, shape and checksum are compared with what was saved. A damaged checkpoint is
    named in a warning and skipped for the next older; `save` renames it to `<step>.damaged`.

    Args:
      template: like the saved state, for any number of devices. A JAX array or ShapeDtypeStruct
        comes back as a JAX array, with its sharding if committed to one, of which each process
        reads its own shards; NumPy arrays and Python numbers come back as such.
      fields: the names of the fields, or of the keys of a dict, that are read, with all their
        leaves, or of fields of these, as `opt_state.average`; the template's others are returned
        as they are. () reads all.
      at_most: newer steps than this are passed over; of several processes the first one's counts.

    Raises:
      UserError: the checkpoint is of another model or of other leaves, or all are damaged.
    """
    self.wait()
    damaged_steps = []
    for step in self._steps(at_most):
      outcome = self._read(step, template, fields)
      if isinstance(outcome, Restored):
        self._damaged = damaged_steps
        return outcome
      if jax.process_index() == 0:
        log.warning('checkpoint %s is damaged and skipped: %s', self.directory / str(step), outcome)
      damaged_steps.append(step)
    if damaged_steps:
      raise UserError(
        f'every checkpoint in {self.directory} is damaged ({", ".join(map(str, damaged_steps))});'
        ' expected at least one sound: remove the directory to start afresh'
      )
    return None

  def wait(self) -> None:
    """Returns when the save in progress, if any, is on disk; raises what went wrong in it."""
    if self._manager is not None:
      with self._writing():
        self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the save in progress and releases the threads. Later calls work again."""
    if self._manager is not None:
      with self._writing():
        self._manager.close()
      self._manager = None

  def __exit__(self, *_: object) -> None:
    self.close()

  def _write(self, step: int, state: PyTree, body: Body) -> None:
    args = ocp.args.Composite(
      state=ocp.args.PyTreeSave(state),
      meta=ocp.args.JsonSave({'body': body, 'crc32': _crc_of_json(body)}),
    )
    with self._writing():
      if self._manager is not None and not self.directory.is_dir():
        raise FileNotFoundError(errno.ENOENT, 'it was removed while it was used')
      manager = self._opened_manager()
      if step in manager.all_steps():
        manager.wait_until_finished()
        manager.delete(step)
      # Orbax would otherwise skip, without a word, a step below the newest.
      background.call(lambda: manager.save(step, force=True, args=args))
    self._last = (step, body)

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      # What was handed over last may not be on disk.
      self._last = (None, None)
      if reason := background.cause(error):
        raise UserError(
          f'cannot write a checkpoint in {self.directory} ({reason}); expected a directory that may'
          ' be written, with room'
        ) from error
      raise

  def _opened_manager(self) -> ocp.CheckpointManager:
    if self._damaged:
      self.close()
      if jax.process_index() == 0:
        for step in self._damaged:
          _set_aside(self.directory / str(step))
      multihost_utils.sync_global_devices('additive_jax:set_aside')
      self._damaged = []
    if self._manager is None:
      self._manager = ocp.CheckpointManager(
        self.directory,
        item_handlers={'state': leaves_.handler(), 'meta': ocp.JsonCheckpointHandler()},
        options=ocp.CheckpointManagerOptions(
          max_to_keep=self._max_to_keep,
          cleanup_tmp_directories=True,
          # Otherwise Orbax reads every checkpoint's metadata here and stumbles over damaged ones.
          lightweight_initialize=True,
        ),
      )
    return self._manager

  def _steps(self, at_most: int | None) -> list[int]:
    """Returns the steps on disk, newest first; the same list on every process."""
    names = [path.name for path in self.directory.glob('*') if path.is_dir()]
    steps = sorted((int(name) for name in names if name.isdecimal()), reverse=True)
    steps = [step for step in steps if at_most is None or step <= at_most]
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
    steps = np.resize(np.array(steps or [0], np.int32), count)
    return multihost_utils.broadcast_one_to_all(steps).tolist() if count else []

  def _read(self, step: int, template: PyTree, fields: Sequence[str]) -> Restored | str:
    """Returns `Restored`, or a text that says what is damaged; the same kind on every process."""
    path = self.directory / str(step)
    templates = _leaves(template)
    requested = {
      leaf: (name, keys_.key_data(templates[leaf]))
      for name, leaf in zip(leaves_.names(template), templates)
      if _is_of(leaf, fields)
    }
    refused = problem = None
    try:
      body = _read_body(path, step)
      saved = self._check_fits(path, body, {leaf: templates[leaf] for leaf in requested}, fields)
      values = leaves_.read(path / 'state', dict(requested.values()), saved)
      for leaf, value in zip(requested, values):
        with _naming(f'leaf {leaf}'):
          if isinstance(value, BaseException):
            raise value
    except UserError as error:
      refused = error
    except DamagedError as error:
      problem = str(error)
    if _all_agree(problem is None and refused is None):
      flags = leaves_.sound(values, saved)
      damaged = [leaf for leaf, is_sound in zip(requested, flags) if not is_sound]
      problem = f'leaf {damaged[0]}: not the bytes that were saved' if damaged else None
    if not _all_agree(problem is None):
      return problem or 'another process cannot read it'
    if refused is not None:
      raise refused
    self._last = (step, body)
    placed = {
      leaf: keys_.like(leaves_.place(value, template), templates[leaf])
      for (leaf, (_, template)), value in zip(requested.items(), values)
    }
    state = [placed.get(leaf, default) for leaf, default in templates.items()]
    return Restored(step, jax.tree.unflatten(jax.tree.structure(template), state), body['meta'])

  def _check_fits(
    self, path: Path, body: Body, requested: Mapping[str, Any], fields: Sequence[str]
  ) -> list[dict[str, Any]]:
    """Returns what was saved of each leaf that is requested, in that order."""
    saved = body['leaves']
    saved = {leaf: saved[leaf] for leaf in saved if _is_of(leaf, fields)}
    specs = {
      leaf: f'{record.get("keys", "")}{record["dtype"]}{record["shape"]}'
      for leaf, record in saved.items()
    }
    expected = {leaf: _spec(template) for leaf, template in requested.items()}
    for kind, different in (
      ('model', differences(body['identity'], self._identity)),
      ('state', differences(specs, expected)),
    ):
      if different:
        raise UserError(
          f'{path} is a checkpoint of another {kind}: {"; ".join(different)};'
          f' {"expected one of this" if fields else "choose another --workdir"}'
        )
    return [saved[leaf] for leaf in requested]


def _read_body(path: Path, step: int) -> Body:
  with _naming('meta/metadata'):
    stored = json.loads((path / 'meta' / 'metadata').read_bytes())
    body = stored['body']
    if stored['crc32'] != _crc_of_json(body) or body['step'] != step:
      raise DamagedError(f'not what was saved as step {step}')
    return body


@contextlib.contextmanager
def _naming(part: str) -> Iterator[None]:
  try:
    yield
  except Exception as error:
    kind = '' if isinstance(error, DamagedError) else f'{type(error).__name__}: '
    raise DamagedError(f'{part}: {kind}{" ".join(str(error).split())[:200]}') from error


def _set_aside(path: Path) -> None:
  number = 0
  while (target := path.with_name(f'{path.name}.damaged{f".{number}" if number else ""}')).exists():
    number += 1
  path.rename(target)


def _leaves(tree: PyTree) -> dict[str, Any]:
  return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _is_of(leaf: str, fields: Sequence[str]) -> bool:
  """Returns whether a leaf's path begins with one of some fields, or keys of a dict."""
  words = re.findall(r'\w+', leaf)
  parts = [field.split('.') for field in fields]
  return not fields or any(words[: len(part)] == part for part in parts)


def _spec(leaf: Any) -> str:
  kind = str(leaf.dtype) if keys_.is_key(leaf) else ''
  leaf = keys_.key_data(leaf) if hasattr(leaf, 'dtype') else np.asarray(leaf)
  return f'{kind}{leaf.dtype}{list(leaf.shape)}'


def _through_json(value: Any) -> Any:
  return json.loads(json.dumps(to_plain(value)))


def _crc_of_json(value: Any) -> int:
  return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _all_agree(flag: bool) -> bool:
  if jax.process_count() == 1:
    return flag
  return bool(np.all(multihost_utils.process_allgather(np.array(flag))))
