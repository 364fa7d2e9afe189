"""Which kinds of gates a model carries, and what its branches must know to carry them."""

from __future__ import annotations

from collections.abc import Sequence

from additive_jax.errors import UserError
from additive_jax.gates.layers import chunks

RESIDUAL, SUB_ACTIVATION, LANE = KINDS = ('residual', 'sub_activation', 'lane')
BRANCH = 'branch'  # of post-norm sites: off leaves the norm of the stream


def check_kinds(model: str, chosen: str | Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
  """Returns the kinds of gates that were chosen for a model, as a tuple.

  >>> check_kinds('mlp', 'residual', KINDS)
  ('residual',)

  Args:
    model: its name, for errors.
    chosen: one kind, or several.
    known: the kinds that the model has.

  Raises:
    UserError: for a kind the model does not have, one given twice, or none.
  """
  chosen = (chosen,) if isinstance(chosen, str) else tuple(chosen)
  for kind in chosen:
    if kind not in known:
      raise UserError(f'gate kind {kind!r} for {model}: expected some of {", ".join(known)}')
  if not chosen or len(set(chosen)) < len(chosen):
    raise UserError(f'gate kinds {chosen} for {model}: expected some of {", ".join(known)}, once')
  return chosen


def check_chunks(width: int, num_chunks: int) -> None:
  """Raises `UserError` where sub-activation gates cannot join `num_chunks` chunks of a width."""
  if num_chunks < 2:
    raise UserError(f'num_chunks {num_chunks} with sub_activation gates: expected at least 2')
  chunks(width, num_chunks)


def check_sizes(**sizes: int) -> None:
  """Raises `UserError` for a size below 1."""
  for name, value in sizes.items():
    if value < 1:
      raise UserError(f'{name} {value}: expected at least 1')


def block_sizes(hidden: int | Sequence[int], num_blocks: int) -> tuple[int, ...]:
  """Returns H of each block, from one number for all or one per block.

  >>> block_sizes(8, num_blocks=2), block_sizes([8], num_blocks=2), block_sizes([8, 16], 2)
  ((8, 8), (8, 8), (8, 16))

  Raises:
    UserError: for another number of sizes.
  """
  sizes = (hidden,) if isinstance(hidden, int) else tuple(hidden)
  sizes = sizes * num_blocks if len(sizes) == 1 else sizes
  if len(sizes) != num_blocks:
    raise UserError(f'hidden {sizes} has {len(sizes)} sizes: expected 1 or {num_blocks}')
  return sizes


def check_divides(name: str, value: int, by: str, count: int) -> None:
  """Raises `UserError` where `count` does not divide `value`."""
  if value % count:
    raise UserError(f'{value} {name} over {count} {by}: expected a multiple of {count}')


def gate_names(kinds: tuple[str, ...], num_chunks: int) -> tuple[str, ...]:
  """Returns the names of a branch's gates in order: `residual` or `branch`, then `join_1` … of
  chunks, then `lane`.

  >>> gate_names(KINDS, num_chunks=3)
  ('residual', 'join_1', 'join_2', 'lane')
  """
  names = [kind for kind in (RESIDUAL, BRANCH) if kind in kinds]
  if SUB_ACTIVATION in kinds:
    names += [f'join_{k}' for k in range(1, num_chunks)]
  return (*names, LANE) if LANE in kinds else tuple(names)
