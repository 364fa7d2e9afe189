"""The small model that a large one starts from: a share of its width, and some of its blocks."""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from additive_jax.errors import UserError
from additive_jax.gates.structure import parse
from additive_jax.models import MLP, ConvNet, Transformer
from additive_jax.models.additive import gate_names, sites_of
from additive_jax.transplant.wiring import module_names, wiring_of


def narrowed(
  model: nn.Module, width: float, structure: Any = None
) -> tuple[nn.Module, tuple[int, ...]]:
  """Returns a model that `grow` puts into `model`, and the numbers of the blocks that its own
  become there.

  Args:
    model: an MLP, a Transformer without routers, or a ConvNet.
    width: share, in (0, 1], of the stream, hidden units, heads (which keep their size) and
      channels; each is rounded, and at least 1.
    structure: of `model`; blocks whose gates are all off in it are left out. None is all-on.

  Raises:
    UserError: for another model, a share out of range, a structure that turns off part of a block,
      or leaves no block or other numbers of blocks in the stages.

  >>> large = aj.models.MLP(num_blocks=4, width=64, hidden=100, num_classes=10)
  >>> small, place = narrowed(large, 0.5, '1001')
  >>> small.num_blocks, small.width, small.hidden, place
  (2, 32, 50, (0, 3))
  """
  wiring_of(model)  # refuses a Transformer with routers, and unknown models
  if not isinstance(model, MLP | Transformer | ConvNet):
    raise UserError(
      f'a narrow copy of {type(model).__name__}: expected an MLP, a Transformer or a ConvNet'
    )
  if not 0 < width <= 1:
    raise UserError(f'width {width} of a narrow copy: expected a share in (0, 1]')
  stages = _blocks_on(model, structure)
  place = tuple(number for stage in stages for number in stage)
  scaled = lambda size: max(1, round(size * width))
  if isinstance(model, ConvNet):
    depth = len(stages[0])
    if {len(stage) for stage in stages} != {depth}:
      raise UserError(
        f'structure {structure} of {len(stages)} stages: expected as many blocks on in each'
      )
    channels = tuple(map(scaled, model.channels))
    return model.clone(channels=channels, blocks_per_stage=depth), place
  sizes = [model.sizes[number] for number in place]
  hidden = tuple(map(scaled, sizes)) if len(set(sizes)) > 1 else scaled(sizes[0])
  if isinstance(model, MLP):
    return model.clone(num_blocks=len(place), width=scaled(model.width), hidden=hidden), place
  heads = scaled(model.num_heads)
  width_ = heads * (model.width // model.num_heads)
  return model.clone(num_layers=len(place), width=width_, num_heads=heads, hidden=hidden), place


def _blocks_on(model, structure) -> list[list[int]]:
  """Returns for each stage the numbers of its blocks that are on, counted over all stages."""
  num_gates = len(gate_names(model))
  bits = parse('1' * num_gates if structure is None else structure, num_gates).bits
  sites = dict(zip(module_names(model), sites_of(model)))
  stages: list[list[int]] = []
  number = 0
  for blocks in wiring_of(model).blocks:
    stages.append([])
    for block in blocks:
      values = [bit for name in block for bit in bits[sites[name].gates]]
      if any(values) and not all(values):
        raise UserError(
          f'structure {structure} turns off part of block {number}: expected all of its gates '
          f'({len(values)}) on, or all off'
        )
      if all(values):
        stages[-1].append(number)
      number += 1
    if not stages[-1]:
      raise UserError(f'structure {structure}: expected a block that is on in every stage')
  return stages
