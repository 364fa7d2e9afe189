"""Checkpoints of one model restored into another: a small one's into a large one, and back."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree, Shaped

from additive_jax.errors import UserError
from additive_jax.files.checkpoint import Checkpointer
from additive_jax.models.additive import gate_names, initial_shapes
from additive_jax.models.identity import describe
from additive_jax.train.rule import Averaging
from additive_jax.train.state import StateOf
from additive_jax.transplant.growth import Receipt, Transplant, grow, receipt
from additive_jax.transplant.moments import grow_optimizer
from additive_jax.transplant.selection import shrink

log = logging.getLogger('additive_jax')

MEAN = 'opt_state.average'  # of a state

Batch: TypeAlias = PyTree[Shaped[Array | np.ndarray, 'B ...']]


class Saved(NamedTuple):
  """The parts of a training that are read from a checkpoint.

  Attributes:
    step: of the checkpoint.
    variables: `{'params': pool}`.
    opt_state: of the optimizer; None if it was not asked for.
    meta: what the run noted with it.
  """

  step: int
  variables: PyTree
  opt_state: PyTree
  meta: dict[str, Any]


class Moved(NamedTuple):
  """A checkpoint in a model of another size.

  Attributes:
    transplant: the new model's pool, and how it was made.
    opt_state: what the optimizer knew, for the new pool; None if it was not asked for.
    receipt: how far the outputs of both models are apart.
    step: of the checkpoint.
  """

  transplant: Transplant
  opt_state: PyTree
  receipt: Receipt
  step: int


@dataclasses.dataclass(frozen=True)
class Checkpoints:
  """The checkpoints that a training left. They are only read, every leaf against its checksum.

    small = Checkpoints('RUN/checkpoints/pool-seed0', small_model, optimizer)
    moved = small.grow(large_model, large, x, key=jax.random.key(0))
    moved.receipt.save('LARGE/checkpoints')

  Attributes:
    path: their directory.
    model: that they are of.
    optimizer: the one that trained it, to take along what it knows; None leaves that out.
    identity: of the checkpoints, if not that of a run of `model`.
    ema: whether the mean of the pool over the steps is read in its place, of a training that kept
      one; without an optimizer.
  """

  path: str | Path
  model: nn.Module
  optimizer: optax.GradientTransformation | None = None
  identity: dict[str, Any] | None = None
  ema: bool = False

  def __post_init__(self):
    if self.ema and self.optimizer is not None:
      raise UserError('ema with an optimizer: expected one of them, for it knows the pool alone')

  def read(self, x: Batch) -> Saved:
    """Returns the newest sound checkpoint; of `x` the shape matters.

    Raises:
      UserError: when there is no sound checkpoint, or it is of another model or without a mean.
    """
    params = initial_shapes(self.model, x)['params']
    opt_state, fields = None, ('params',)
    if self.optimizer is not None:
      opt_state, fields = jax.eval_shape(self.optimizer.init, params), ('params', 'opt_state')
    if self.ema:
      opt_state, fields = Averaging(None, params), (MEAN,)
    gates = list(gate_names(self.model))
    identity = self.identity or {'model': describe(self.model), 'gates': gates}
    with Checkpointer(self.path, identity=identity) as checkpoints:
      template = StateOf(params, opt_state, None, None)  # two fields are not read
      try:
        restored = checkpoints.restore(template, fields=fields)
      except UserError as error:
        if f'.{MEAN}' not in str(error):
          raise
        wanted = 'expected a training with config.train.ema'
        raise UserError(
          f'{self.path} without a mean of the pool over the steps: {wanted}'
        ) from error
    if restored is None:
      raise UserError(f'{self.path}: expected a directory of checkpoints, and there is none in it')
    state = restored.state
    pool = state.opt_state.average if self.ema else state.params
    opt_state = None if self.ema else state.opt_state
    return Saved(restored.step, {'params': pool}, opt_state, restored.meta)

  def grow(
    self, large_model: nn.Module, large: PyTree, x: Batch, *, key: PRNGKeyArray, **options: Any
  ) -> Moved:
    """Returns the newest sound checkpoint in a large model that computes the same.

    Args:
      large_model, large: the model and its initial pool; it is not changed.
      x: a batch of inputs, for the receipt.
      key: of the shares of copies.
      options: of `transplant.grow`.

    Raises:
      UserError: as `read`, or when the model does not fit into the large one.
    """
    saved = self.read(x)
    grown = grow(self.model, saved.variables, large_model, large, key=key, **options)
    return self._moved(saved, grown, large_model, x)

  def shrink(self, small_model: nn.Module, x: Batch, **options: Any) -> Moved:
    """Returns the strongest units of the newest sound checkpoint in a small model; not exact.

    Args:
      small_model: the new model.
      x: a batch of inputs, for the receipt.
      options: of `transplant.shrink`.

    Raises:
      UserError: as `read`, or when the small model is not smaller.
    """
    saved = self.read(x)
    small = initial_shapes(small_model, x)
    shrunk = shrink(self.model, saved.variables, small_model, small, **options)
    return self._moved(saved, shrunk, small_model, x)

  def _moved(self, saved: Saved, transplant: Transplant, model: nn.Module, x: Batch) -> Moved:
    has_optimizer = self.optimizer is not None
    opt_state = grow_optimizer(transplant, saved.opt_state) if has_optimizer else None
    difference = receipt(transplant, self.model, saved.variables, model, x)
    log.info('%s, step %d: %s', self.path, saved.step, difference)
    return Moved(transplant, opt_state, difference, saved.step)
