"""Checkpoints of one model restored into another: a small one's into a large one, and back."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from additive_jax.errors import UserError, user_errors
from additive_jax.files.checkpoint import Checkpointer
from additive_jax.files.journal import replace_file
from additive_jax.files.rundir import WRITABLE
from additive_jax.models.additive import gate_names
from additive_jax.models.identity import describe
from additive_jax.train.state import State
from additive_jax.transplant import Receipt, Transplant, grow, grow_optimizer, receipt, shrink

log = logging.getLogger('additive_jax')

RECEIPT = 'receipt.json'


class Saved(NamedTuple):
  """What a checkpoint holds of a training.

  Attributes:
    step: of the checkpoint.
    variables: `{'params': pool}`.
    opt_state: of the optimizer; None if it was not asked for.
    meta: what the run noted with it.
  """

  step: int
  variables: Any
  opt_state: Any
  meta: dict


class Moved(NamedTuple):
  """A checkpoint in a model of another size.

  Attributes:
    transplant: the new model's pool, and how it was made.
    opt_state: what the optimizer knew, for the new pool; None if it was not asked for.
    receipt: how far the logits of both models are apart.
    step: of the checkpoint.
  """

  transplant: Transplant
  opt_state: Any
  receipt: Receipt
  step: int


def restore_grown(
  path,
  small_model,
  large_model,
  large,
  x: jax.Array,
  *,
  key: jax.Array,
  optimizer: optax.GradientTransformation | None = None,
  identity: dict | None = None,
  **options,
) -> Moved:
  """A small model's newest sound checkpoint in a large model that computes the same.

  Args:
    path: the directory of the checkpoints, such as `RUN/checkpoints/pool-seed0`.
    small_model: that the checkpoints are of.
    large_model, large: the model and its initial pool; it is not changed.
    x: a batch of inputs, [B, ...], for the receipt.
    key: of the shares of copies.
    optimizer: the one that trained the small model, to move its state as well.
    identity: of the checkpoints, if not that of a run of `small_model`.
    options: of `transplant.grow`.

  Raises:
    UserError: when there is no sound checkpoint, or it is of another model, or the small model does
      not fit into the large one.
  """
  saved = read_checkpoint(path, small_model, x, optimizer=optimizer, identity=identity)
  grown = grow(small_model, saved.variables, large_model, large, key=key, **options)
  opt_state = None if optimizer is None else grow_optimizer(grown, saved.opt_state)
  said = receipt(grown, small_model, saved.variables, large_model, x)
  log.info('%s, step %d: %s', path, saved.step, said)
  return Moved(grown, opt_state, said, saved.step)


def restore_shrunk(
  path,
  large_model,
  small_model,
  x: jax.Array,
  *,
  optimizer: optax.GradientTransformation | None = None,
  identity: dict | None = None,
  **options,
) -> Moved:
  """The strongest units of a large model's newest sound checkpoint in a small model; not exact.

  Args:
    path, x, identity: as in `restore_grown`.
    optimizer: the one that trained the large model, to take along what it knows of these units.
    large_model: that the checkpoints are of.
    small_model: the other.
    options: of `transplant.shrink`.

  Raises:
    UserError: as `restore_grown`.
  """
  saved = read_checkpoint(path, large_model, x, optimizer=optimizer, identity=identity)
  small = jax.eval_shape(small_model.init, jax.random.key(0), x)
  shrunk = shrink(large_model, saved.variables, small_model, small, **options)
  opt_state = None if optimizer is None else grow_optimizer(shrunk, saved.opt_state)
  said = receipt(shrunk, large_model, saved.variables, small_model, x)
  log.info('%s, step %d: %s', path, saved.step, said)
  return Moved(shrunk, opt_state, said, saved.step)


def read_checkpoint(
  path,
  model,
  x: jax.Array,
  *,
  optimizer: optax.GradientTransformation | None = None,
  identity: dict | None = None,
) -> Saved:
  """The pool, and if its optimizer is given the optimizer's state, of the newest sound checkpoint
  of a training, every leaf checked against its checksum.

  Args: as in `restore_grown`; of `x` the shape matters.

  Raises:
    UserError: when there is no sound checkpoint, or it is of another model.
  """
  params = jax.eval_shape(model.init, jax.random.key(0), x)['params']
  opt_state = None if optimizer is None else jax.eval_shape(optimizer.init, params)
  identity = identity or {'model': describe(model), 'gates': list(gate_names(model))}
  with Checkpointer(path, identity=identity) as checkpoints:
    fields = ('params',) if optimizer is None else ('params', 'opt_state')
    restored = checkpoints.restore(State(params, opt_state, None, None), fields=fields)
  if restored is None:
    raise UserError(f'{path}: expected a directory of checkpoints, and there is none in it')
  state = restored.state
  return Saved(restored.step, {'params': state.params}, state.opt_state, restored.meta)


def save_receipt(directory, receipt: Receipt) -> Path:
  """Writes a receipt as `receipt.json`, whole or not at all, beside the checkpoints in `directory`,
  which is made if it is not there.

  Raises:
    UserError: when it cannot be written.
  """
  path = Path(directory) / RECEIPT
  with user_errors('write', path, WRITABLE):
    replace_file(path, (json.dumps(dataclasses.asdict(receipt), indent=2) + '\n').encode())
  return path
