"""Pools from checkpoints of any kind: a run's, or one of a network of one's own that Flax or Orbax
has written. Nothing that is read runs code.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from additive_jax.errors import UserError, one_line, user_path
from additive_jax.models.additive import Inputs, initial_shapes
from additive_jax.models.batch_norm import BATCH_STATS
from additive_jax.transplant.restore import Checkpoints

SHOWN = 3  # leaves that a message names
KINDS = (
  'a run directory, a directory of its checkpoints, or what Flax (msgpack, safetensors) or Orbax '
  'has written'
)
Flat = dict[str, Any]


def restore_pool(
  path: str | Path, model: nn.Module, x: Inputs, *, name: str = '', ema: bool = False
) -> PyTree:
  """Returns `{'params': pool}` of a model from a checkpoint, and beside it the `batch_stats` of
  BatchNorms, where the checkpoint has them; runs keep none, and `recalibrate` finds them.

  >>> import flax.serialization, pathlib, tempfile
  >>> model, x = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3), np.ones((1, 6))
  >>> variables = jax.jit(model.init)(jax.random.key(0), x)
  >>> file = pathlib.Path(tempfile.mkdtemp()) / 'mine.msgpack'
  >>> _ = file.write_bytes(flax.serialization.to_bytes(variables))
  >>> pool = restore_pool(file, model, x)['params']
  >>> bool((pool['embed']['kernel'] == variables['params']['embed']['kernel']).all())
  True

  Args:
    path: a run directory, the directory of checkpoints of one of its pools, or what Flax (msgpack,
      safetensors) or Orbax has written of parameters, variables or a whole training state.
    model: the network.
    x: a batch of inputs, of which the shape matters.
    name: of the pool of a run; '' is the first that fits.
    ema: of a run with `config.train.ema`, whether the mean of the pool over the steps is read.

  Returns:
    NumPy arrays of the model's dtypes.

  Raises:
    UserError: for something else, or a checkpoint without some leaves of the pool, or with others,
      or of other shapes: it names them.
  """
  path = user_path(path, 'checkpoint')
  if not path.exists():
    raise UserError(f'checkpoint {str(path)!r} is not there: expected {KINDS}')
  wanted = initial_shapes(model, x)
  if (path / 'checkpoints').is_dir():
    return _of_run(path / 'checkpoints', model, x, name, ema)
  steps = _steps(path)
  if steps and (steps[0] / 'meta').is_dir() and (steps[0] / 'state').is_dir():
    return jax.tree.map(np.asarray, Checkpoints(path, model, ema=ema).read(x).variables)
  if ema:
    raise UserError(f'ema of checkpoint {str(path)!r}: expected a run with config.train.ema')
  if path.is_file():
    return _fitting(_read_file(path), wanted, path)
  return _fitting(_read_orbax(steps[0] if steps else path), wanted, path)


def digest(pool: PyTree) -> str:
  """Returns a text that tells pools apart, of the names and bytes of their leaves.

  >>> digest({'w': np.zeros(2)}) == digest({'w': np.zeros(2)}), len(digest({'w': np.ones(2)}))
  (True, 16)
  """
  total = hashlib.sha256()
  for path, leaf in sorted(flatten_dict(pool, sep='/').items()):
    array = np.ascontiguousarray(leaf)
    total.update(f'{path} {array.dtype.str} {array.shape}'.encode())
    total.update(array.tobytes())
  return total.hexdigest()[:16]


def _of_run(path: Path, model: nn.Module, x: Inputs, name: str, ema: bool) -> PyTree:
  """Returns a pool of a run, from the checkpoints of the first of the name that fits."""
  parts = lambda folder: [int(p) if p.isdecimal() else p for p in re.split(r'(\d+)', folder.name)]
  folders = sorted((folder for folder in path.iterdir() if _steps(folder)), key=parts)
  chosen = [folder for folder in folders if name in ('', folder.name)]
  if not chosen:
    known = ', '.join(folder.name for folder in folders) or 'some, and there are none'
    raise UserError(f'checkpoints {name!r} of {path.parent}: expected {known}')
  refused = None
  for folder in chosen:
    try:
      return jax.tree.map(np.asarray, Checkpoints(folder, model, ema=ema).read(x).variables)
    except UserError as error:
      refused = refused or error
  assert refused is not None
  raise refused


def _steps(path: Path) -> list[Path]:
  """Returns the folders of steps, newest first."""
  if not path.is_dir():
    return []
  steps = [step for step in path.iterdir() if step.name.isdecimal() and step.is_dir()]
  return sorted(steps, key=lambda step: -int(step.name))


def _read_file(path: Path) -> Any:
  try:
    if path.suffix == '.safetensors':
      leaves = safetensors.numpy.load_file(path)
      sep = '/' if any('/' in name for name in leaves) else '.'
      return unflatten_dict(leaves, sep=sep)
    return flax.serialization.msgpack_restore(path.read_bytes())
  except Exception as error:
    raise UserError(
      f'checkpoint {str(path)!r} ({one_line(error)[:160]}): expected {KINDS}'
    ) from error


def _read_orbax(path: Path) -> Any:
  """Returns the arrays of an Orbax checkpoint, of one item or of several by name."""
  items = [item for item in sorted(path.iterdir()) if (item / '_METADATA').exists()]
  if (path / '_METADATA').exists():
    items = [path]
  if not items:
    raise UserError(f'checkpoint {str(path)!r}: expected {KINDS}')
  try:
    found = {item.name: _read_item(item) for item in items}
  except Exception as error:
    raise UserError(
      f'checkpoint {str(path)!r} ({one_line(error)[:160]}): expected {KINDS}'
    ) from error
  return found[path.name] if items == [path] else found


def _read_item(path: Path) -> Any:
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    tree = checkpointer.metadata(path.resolve()).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return checkpointer.restore(path.resolve(), args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def _fitting(tree: Any, wanted: PyTree, path: Path) -> PyTree:
  """Returns the pool in a tree, and the statistics of BatchNorms where it has some."""
  under = lambda leaves: {f'{BATCH_STATS}/{name}': leaf for name, leaf in leaves.items()}
  shapes = flatten_dict(wanted['params'], sep='/')
  flat = _pool(tree, shapes, path)
  stored = next((_flat(node) for _, key, node in _nodes(tree) if key == BATCH_STATS), {})
  if stored:
    flat |= under(stored)
    shapes |= under(flatten_dict(wanted.get(BATCH_STATS, {}), sep='/'))
  if problems := _problems(flat, shapes):
    raise UserError(f'checkpoint {str(path)!r} {problems}: expected a pool of this model')
  leaves = {name: np.asarray(flat[name]).astype(leaf.dtype) for name, leaf in shapes.items()}
  restored = unflatten_dict(leaves, sep='/')
  statistics = {BATCH_STATS: restored.pop(BATCH_STATS)} if stored else {}
  return {'params': restored, **statistics}


def _pool(tree: Any, shapes: Flat, path: Path) -> Flat:
  """Returns the leaves of the part of a tree that is the pool: parameters may stand beside or below
  others, such as the moments of an optimizer, which are deeper."""
  best: Flat = {}
  most = (0, False, 0)
  for depth, key, node in _nodes(tree):
    flat = _flat(node)
    fit = (sum(name in flat for name in shapes), key == 'params', -depth)
    if fit > most:
      best, most = flat, fit
  if not best:
    has = _named([name for _, _, node in [next(_nodes(tree))] for name in _flat(node)])
    raise UserError(
      f'checkpoint {str(path)!r} with {has or "no arrays"} fits no leaf of the pool: expected '
      f'{_named(list(shapes))}'
    )
  return best


def _problems(flat: Flat, shapes: Flat) -> str:
  """Returns in words how leaves are not those of a pool; '' where they are."""
  problems = (
    ('lacks', [name for name in shapes if name not in flat]),
    ('has beside the pool', [name for name in flat if name not in shapes]),
    (
      'has in other shapes',
      [
        f'{name} {list(flat[name].shape)}, not {list(leaf.shape)}'
        for name, leaf in shapes.items()
        if name in flat and flat[name].shape != leaf.shape
      ],
    ),
  )
  return '; '.join(f'{word} {_named(names)}' for word, names in problems if names)


def _nodes(tree: Any) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
  """Yields the dicts of a tree, those above before those below, with their depths and keys."""
  level = [('', tree)]
  depth = 0
  while level:
    nodes = [(key, node) for key, node in level if isinstance(node, Mapping)]
    yield from ((depth, key, node) for key, node in nodes)
    level = [(str(key), below) for _, node in nodes for key, below in node.items()]
    depth += 1


def _flat(node: Mapping[str, Any]) -> Flat:
  """Returns the arrays of a dict by their paths."""
  flat = flatten_dict(dict(node), sep='/')
  return {name: leaf for name, leaf in flat.items() if hasattr(leaf, 'shape')}


def _named(names: list[str]) -> str:
  """Returns the first of some names, and how many there are beside."""
  more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
  return f'{", ".join(names[:SHOWN])}{more}'
