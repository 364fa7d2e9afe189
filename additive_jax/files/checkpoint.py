"""Checkpoints that are whole or not there: Orbax underneath, a checksum for every leaf on top.

Orbax renames a step into place when all of it is on disk: a kill leaves no half checkpoint. It does
not notice bytes that change later. So beside the pytree, `state`, a checkpoint has `meta`: JSON
with a checksum of its own, the model's identity, the caller's notes, and every leaf's CRC-32.
"""

import contextlib
import json
import logging
import re
import typing
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from jax.experimental import multihost_utils

from additive_jax.errors import UserError
from additive_jax.files.journal import to_plain
from additive_jax.files.rundir import differences

log = logging.getLogger('additive_jax')


class Restored(typing.NamedTuple):
  """What `restore` found: the step, the state placed like the template, the caller's notes."""

  step: int
  state: typing.Any
  meta: dict


class DamagedError(Exception):
  """A part of a checkpoint is not what was saved; the message names it."""


class Checkpointer(contextlib.AbstractContextManager):
  """Saves and restores the state of a run under `directory`, one sub-directory a step.

  Reading changes nothing on disk. One run writes into a directory, several may read it; every
  process of a run makes the same calls. Also a context manager, which waits for the last save.

  Args:
    directory: where the steps are kept; made by the first `save`.
    identity: small dict of JSON values, the model's name and gates; any other is refused.
    max_to_keep: how many of the newest checkpoints stay.
  """

  def __init__(self, directory, *, identity, max_to_keep=3):
    self.directory = Path(directory).resolve()  # tensorstore takes no `..`
    self._identity = _through_json(identity)
    self._max_to_keep = max_to_keep
    self._manager = None
    self._damaged = []
    self._last = (None, None)

  def save(self, step, state, *, meta=None, wait=False):
    """Saves `state` as checkpoint `step` in the background.

    The state is copied to the host before this returns, so its buffers may be donated at once. The
    step that this object last saved or restored is left as it is when the content is the same; any
    other checkpoint of the same step is replaced.

    Args:
      step: non-negative integer; newer checkpoints have larger ones.
      state: pytree of JAX or NumPy arrays and numbers. Arrays spread over processes without being
        fully replicated are gathered first.
      meta: dict of JSON values that `restore` hands back.
      wait: return only when the checkpoint is on disk.

    Raises:
      UserError: the directory cannot be written.
      ValueError: no leaves, or leaves of zero size or the same dotted name.
    """
    host_state = jax.tree.map(_to_host, state)
    names = _names(host_state)
    empty = [path for path, array in _leaves(host_state) if array.size == 0]
    if empty or not names:
      raise ValueError(f'expected a state with leaves, none of zero size; found {empty or state}')
    leaves = {path: _describe(array) for path, array in _leaves(host_state)}
    body = {'step': step, 'identity': self._identity, 'meta': meta or {}, 'leaves': leaves}
    body = _through_json(body)
    last_step, last_body = self._last
    # Process 0 decides for all: the notes of the others may differ, and are not stored.
    same = multihost_utils.broadcast_one_to_all(np.array(body == last_body))
    if step != last_step or not same:
      self._write(step, host_state, body)
    if wait:
      self.wait()

  def restore(self, template, *, fields=()):
    """The newest sound checkpoint, or None when there is none at all.

    Every leaf's dtype, shape and checksum are compared with what was saved. A damaged checkpoint is
    named in a warning and skipped for the next older; `save` renames it to `<step>.damaged`.

    Args:
      template: pytree like the saved state. A JAX array or ShapeDtypeStruct comes back as a JAX
        array, with its sharding if committed to one; NumPy arrays and Python numbers as such.
      fields: of a template with fields, such as a `train.State`, the names of those that are read,
        with all their leaves; () is all.

    Raises:
      UserError: the checkpoint is of another model or of other leaves, or all are damaged.
    """
    self.wait()
    damaged = []
    for step in self._steps():
      outcome = self._read(step, template, fields)
      if isinstance(outcome, Restored):
        self._damaged = damaged
        return outcome
      if jax.process_index() == 0:
        log.warning('checkpoint %s is damaged and skipped: %s', self.directory / str(step), outcome)
      damaged.append(step)
    if damaged:
      raise UserError(
        f'every checkpoint in {self.directory} is damaged ({", ".join(map(str, damaged))});'
        ' expected at least one sound: remove the directory to start afresh'
      )
    return None

  def latest_step(self):
    """The newest step on disk that `restore` has not found damaged, or None."""
    self.wait()
    return next((step for step in self._steps() if step not in self._damaged), None)

  def wait(self):
    """Returns when the save in progress, if any, is on disk; raises what went wrong in it."""
    if self._manager is not None:
      with self._writing():
        self._manager.wait_until_finished()

  def close(self):
    """Waits for the save in progress and releases the threads. Later calls work again."""
    if self._manager is not None:
      with self._writing():
        self._manager.close()
      self._manager = None

  def __exit__(self, *_):
    self.close()

  def _write(self, step, host_state, body):
    with self._writing():
      self._open_manager()
      if step in self._manager.all_steps():
        self._manager.wait_until_finished()
        self._manager.delete(step)
      self._manager.save(
        step,
        # Orbax would otherwise skip, without a word, a step below the newest.
        force=True,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(host_state),
          meta=ocp.args.JsonSave({'body': body, 'crc32': _crc_of_json(body)}),
        ),
      )
    self._last = (step, body)

  @contextlib.contextmanager
  def _writing(self):
    try:
      yield
    except Exception as error:
      # What was handed over last may not be on disk.
      self._last = (None, None)
      if isinstance(error, OSError):
        raise UserError(
          f'cannot write a checkpoint in {self.directory} ({error.strerror or error});'
          ' expected a writable directory'
        ) from error
      raise

  def _open_manager(self):
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
        # The layout that `_read_state` reads, whatever Orbax's defaults become.
        item_handlers={
          'state': ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False),
          'meta': ocp.JsonCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(
          max_to_keep=self._max_to_keep,
          cleanup_tmp_directories=True,
          # Otherwise Orbax reads every checkpoint's metadata here and stumbles over damaged ones.
          lightweight_initialize=True,
        ),
      )

  def _steps(self):
    """Steps on disk, newest first; the same list on every process."""
    names = [path.name for path in self.directory.glob('*') if path.is_dir()]
    steps = sorted((int(name) for name in names if name.isdecimal()), reverse=True)
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
    steps = np.resize(np.array(steps or [0], np.int32), count)
    return multihost_utils.broadcast_one_to_all(steps).tolist() if count else []

  def _read(self, step, template, fields):
    """`Restored`, or a text that says what is damaged; the same kind on every process."""
    path = self.directory / str(step)
    wanted = {name: _spec(leaf) for name, leaf in _leaves(template)}
    refused = problem = None
    try:
      body = _read_body(path, step)
      self._check_fits(path, body, wanted, fields)
      values = _read_state(path / 'state', body['leaves'], template)
    except UserError as error:
      refused = error
    except DamagedError as error:
      problem = str(error)
    if not _all_agree(problem is None):
      return problem or 'another process cannot read it'
    if refused is not None:
      raise refused
    self._last = (step, body)
    return Restored(step, jax.tree.map(_place, values, template), body['meta'])

  def _check_fits(self, path, body, wanted, fields):
    of_field = lambda name: not fields or re.match(r'\.(\w+)', name).group(1) in fields
    leaves = {name: leaf for name, leaf in body['leaves'].items() if of_field(name)}
    saved = {name: f'{leaf["dtype"]}{leaf["shape"]}' for name, leaf in leaves.items()}
    for kind, different in (
      ('model', differences(body['identity'], self._identity)),
      ('state', differences(saved, wanted)),
    ):
      if different:
        raise UserError(
          f'{path} is a checkpoint of another {kind}: {"; ".join(different)};'
          f' {"expected one of this" if fields else "choose another --workdir"}'
        )


def _read_body(path, step):
  with _naming('meta/metadata'):
    stored = json.loads((path / 'meta' / 'metadata').read_bytes())
    body = stored['body']
    if stored['crc32'] != _crc_of_json(body) or body['step'] != step:
      raise DamagedError(f'not what was saved as step {step}')
    return body


def _read_state(path, saved, template):
  """The saved pytree as NumPy arrays, each leaf checked against its description in `saved`."""
  # Not by Orbax: its reader leaves reads behind in a closed event loop when one of them fails.
  context = ts.Context()
  database = {'driver': 'ocdbt', 'base': {'driver': 'file', 'path': f'{path}/'}}
  opened = [
    ts.open({'driver': 'zarr', 'kvstore': {**database, 'path': f'{name}/'}}, context=context)
    for name in _names(template)
  ]
  values = []
  for (leaf, _), future in zip(_leaves(template), opened):
    with _naming(f'leaf {leaf}'):
      array = future.result()
      # Before reading: a damaged shape may be of any size.
      _compare({'dtype': array.dtype.name, 'shape': list(array.shape)}, saved[leaf])
      values.append(array.read().result())
      _compare(_describe(values[-1]), saved[leaf])
  return jax.tree.unflatten(jax.tree.structure(template), values)


def _compare(found, saved):
  if saved | found != saved:
    raise DamagedError(f'found {found}, saved {saved}')


@contextlib.contextmanager
def _naming(part):
  try:
    yield
  except Exception as error:
    kind = '' if isinstance(error, DamagedError) else f'{type(error).__name__}: '
    raise DamagedError(f'{part}: {kind}{" ".join(str(error).split())[:200]}') from error


def _set_aside(path):
  number = 0
  while (target := path.with_name(f'{path.name}.damaged{f".{number}" if number else ""}')).exists():
    number += 1
  path.rename(target)


def _to_host(leaf):
  """An owned NumPy copy of the whole value of `leaf`."""
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    if not leaf.is_fully_replicated:
      return np.array(multihost_utils.process_allgather(leaf, tiled=True))
    leaf = leaf.addressable_data(0)
  # Copied: on CPU the view of a JAX array shares its buffer, and a NumPy array is the caller's own.
  return np.array(leaf)


def _place(value, leaf):
  """The NumPy array `value` in the kind and sharding of the template's `leaf`."""
  if isinstance(leaf, np.ndarray):
    return value
  if isinstance(leaf, np.generic):
    return value[()]
  if isinstance(leaf, bool | int | float | complex):
    return value.item()
  if leaf.sharding is None or not getattr(leaf, 'committed', True):
    return jnp.asarray(value)
  return jax.make_array_from_callback(value.shape, leaf.sharding, lambda index: value[index])


def _leaves(tree):
  return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]


def _names(tree):
  """The leaves' names in the database, in order."""
  names = list(ocp.tree.to_flat_dict(tree, sep='.'))
  if len(names) < len(jax.tree.leaves(tree)):
    raise ValueError('two leaves of the state have the same keys when these are joined by dots')
  return names


def _spec(leaf):
  leaf = leaf if hasattr(leaf, 'dtype') else np.asarray(leaf)
  return f'{leaf.dtype}{list(leaf.shape)}'


def _describe(array):
  data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  return {'dtype': str(array.dtype), 'shape': list(array.shape), 'crc32': zlib.crc32(data)}


def _through_json(value):
  return json.loads(json.dumps(to_plain(value)))


def _crc_of_json(value):
  return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _all_agree(flag):
  if jax.process_count() == 1:
    return flag
  return bool(np.all(multihost_utils.process_allgather(np.array(flag))))
