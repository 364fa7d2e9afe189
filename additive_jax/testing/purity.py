"""Clauses of the contract about each part by itself: deterministic, finite, and independent of the
other examples of a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from additive_jax.batches import rows
from additive_jax.models.contract import reason
from additive_jax.models.side import stream_of
from additive_jax.testing.case import Case, compiled, far_apart

# Relative to the largest number compared. float32 sums of some thousand terms in another order
# differ by about 1e-6, and a stack of layers multiplies that. bfloat16 has 8 bits: 2^-8 a rounding.
TOLERANCE, LOW_TOLERANCE = 1e-4, 4e-2
_CHANGES = (
  '{} gives different numbers for the same input and parameters: it must be deterministic, without '
  'hidden random numbers or state.'
)
_MIXES = (
  '{} mixes the examples of a batch: what it gives for one changes with the others or with their '
  'number (batch statistics?), but structures are evaluated side by side along the batch axis.'
)


def parts_are_pure(case: Case) -> bool:
  """Checks that parts are deterministic, finite, and for each example the same whatever the others
  and their number; and moves the pool a step away from init, where the ways to run are compared.

  Every part runs on four batches, here of four examples:

    inputs  a b c d      again   a b c d   equal, or the part is not deterministic
    mixed   a b C D      alone   a         rows a and b equal, or it mixes examples
  """
  half = case.num_examples // 2
  try:
    program = _all_parts(case)
    inputs = _inputs(case, program, case.variables)
    mixed = [_mixed(batch, half) for batch in inputs]
    batches = (inputs, inputs, mixed, [rows(batch, slice(1)) for batch in inputs])
    first, again, varied, alone = (
      jax.device_get(program(case.variables, batch)) for batch in batches
    )
    alone_differs = [far_apart(rows(out, slice(1)), other) for out, other in zip(first, alone)]
    case.tolerance = _tolerance(program, case.variables, inputs)
    # Another number of examples is another program: is it the number, or what tracing drew?
    suspect = max(alone_differs) > case.tolerance
    fresh = jax.device_get(_all_parts(case)(case.variables, inputs)) if suspect else first
    case.moved = _moved(case, program)
  except Exception as error:
    return case.fail(f'Its parts cannot be compiled together: {reason(error)}.')
  sound = True
  for i, part in enumerate(case.parts):
    out = first[i]
    if not _is_finite(out):  # the parts after it are given these
      return case.fail(f'{part.title} gives numbers that are not finite at init.')
    if max(far_apart(out, again[i]), far_apart(out, fresh[i])) > case.tolerance:
      sound = False
      case.fail(_CHANGES.format(part.title))
    elif (
      max(far_apart(*(rows(of, slice(half)) for of in (out, varied[i]))), alone_differs[i])
      > case.tolerance
    ):
      case.independent = False
      case.fail(_MIXES.format(part.title))
    elif part.site is not None and _is_same(part.after(inputs[i], out), inputs[i]):
      case.notes.append(f'{part.title} adds nothing at init.')
  return sound


def one_run_is_sound(case: Case) -> bool:
  """Checks what `parts_are_pure` does by running all parts in turn, on the same and on half of the
  examples changed; but not for another number of examples."""
  half = case.num_examples // 2
  mixed = _mixed(case.x, half)

  def in_turn(variables, value):
    streams = []
    for part in case.parts:
      value = part.after(value, part.run(variables, value, model=case.model))
      streams.append(value)
    return streams

  program = compiled(in_turn)
  try:
    first, again, varied = (
      jax.device_get(program(case.variables, x)) for x in (case.x, case.x, mixed)
    )
    case.tolerance = _tolerance(program, case.variables, case.x)
  except Exception as error:
    return case.fail(f'Its parts cannot be compiled together: {reason(error)}.')
  for part, out, same, other in zip(case.parts, first, again, varied):
    if not _is_finite(out):
      return case.fail(f'{part.title} gives numbers that are not finite at init.')
    if far_apart(out, same) > case.tolerance:
      return case.fail(_CHANGES.format(part.title))
    if far_apart(*(rows(of, slice(half)) for of in (out, other))) > case.tolerance:
      return case.fail(_MIXES.format(part.title))
  return True


def _all_parts(case):
  """Returns a freshly traced program: what each part gives for an input or stream of its own."""
  parts_ = case.parts
  return compiled(
    lambda variables, inputs: [
      part.run(variables, value, model=case.model) for part, value in zip(parts_, inputs)
    ]
  )


def _inputs(case, program, variables):
  """Returns the input of each part, as NumPy arrays: x and the streams. Runs all parts as often as
  there are streams, since one program costs less than two."""
  inputs = [
    case.x,
    *(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), h) for h in case.streams),
  ]
  for i, part in enumerate(case.parts[:-1]):
    out = jax.device_get(program(variables, inputs)[i])
    inputs[i + 1] = part.after(inputs[i], out)
  return inputs


def _moved(case, program):
  """Returns the variables a random step away from init; the same ones where that is not finite."""
  rng = np.random.default_rng(case.seed)

  def move(leaf):
    scale = 0.5 / np.sqrt(max(4, np.prod(leaf.shape[:-1])))
    step = scale * rng.standard_normal(leaf.shape)
    return leaf + step.astype(leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

  moved = {
    name: jax.tree.map(move if name == 'params' else lambda leaf: np.abs(move(leaf)), tree)
    for name, tree in case.variables.items()  # variances are positive
  }
  results = program(moved, _inputs(case, program, moved))
  return moved if all(map(_is_finite, results)) else case.variables


def _is_finite(out):
  return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out))


def _is_same(before, after):
  """Returns whether a site leaves the stream as it was."""
  return np.array_equal(stream_of(before), stream_of(after))


def _mixed(batch, half):
  """Returns a batch of which the second half is changed."""
  change = lambda leaf: np.concatenate([leaf[:half], _changed(leaf[half:])])
  return jax.tree.map(change, batch)


def _changed(x):
  """Returns the same examples with other values of the kind that occur in them."""
  if x.dtype == bool:
    return ~x
  return 1 - 2 * x if jnp.issubdtype(x.dtype, jnp.floating) else x.max() - x + x.min()


def _tolerance(program, *arguments) -> float:
  """Returns the tolerance that suits the narrowest floats that a program computes with."""
  text = str(program.trace(*arguments).jaxpr)
  low = any(f'{name}[' in text for name in ('bf16', 'f16', 'f8'))
  return LOW_TOLERANCE if low else TOLERANCE
