"""The small model that a large one starts from: a share of its width, and some of its blocks."""

from __future__ import annotations

from typing import Any

from additive_jax.errors import UserError
from additive_jax.gates.structure import parse
from additive_jax.models import MLP, ConvNet, Transformer
from additive_jax.models.additive import gate_names, sites_of
from additive_jax.transplant.wiring import wiring_of


def narrowed(model, width: float, structure=None) -> tuple[Any, tuple[int, ...]]:
  """A model that `grow` puts into `model`, and the numbers of the blocks that it becomes there.

  Args:
    model: an MLP, a Transformer without routers, or a ConvNet.
    width: share, in (0, 1], of the stream, hidden units, heads (which keep their size) and
      channels; each is rounded, and at least 1.
    structure: of `model`; blocks whose gates are all off in it are left out. None is all-on.

  Raises:
    UserError: for another model, a share out of range, a structure that turns off part of a block,
      or leaves no block or other numbers of blocks in the stages.
  """
  wiring = wiring_of(model)
  if not isinstance(model, MLP | Transformer | ConvNet):
    raise UserError(
      f'a narrow copy of {type(model).__name__}: expected an MLP, a Transformer or a ConvNet'
    )
  if not 0 < width <= 1:
    raise UserError(f'width {width} of a narrow copy: expected a share in (0, 1]')
  kept = _kept_blocks(model, wiring, structure)
  place = tuple(i for stage in kept for i in stage)
  scaled = lambda size: max(1, round(size * width))
  if isinstance(model, ConvNet):
    depth = len(kept[0])
    if {len(stage) for stage in kept} != {depth}:
      raise UserError(
        f'structure {structure} of {len(kept)} stages: expected as many blocks on in each'
      )
    channels = tuple(map(scaled, model.channels))
    return model.clone(channels=channels, blocks_per_stage=depth), place
  sizes = [model.sizes[i] for i in place]
  hidden = tuple(map(scaled, sizes)) if len(set(sizes)) > 1 else scaled(sizes[0])
  if isinstance(model, MLP):
    small = {'num_blocks': len(place), 'width': scaled(model.width), 'hidden': hidden}
    return model.clone(**small), place
  heads = scaled(model.num_heads)
  size = model.width // model.num_heads
  small = {'num_layers': len(place), 'width': heads * size, 'num_heads': heads, 'hidden': hidden}
  return model.clone(**small), place


def _kept_blocks(model, wiring, structure) -> list[list[int]]:
  """For each stage the numbers of its blocks that are on, counted over all stages."""
  num_gates = len(gate_names(model))
  bits = parse('1' * num_gates if structure is None else structure, num_gates).bits
  sites = {site.label.replace('/', '__'): site for site in sites_of(model)}
  kept, number = [], 0
  for stage in wiring.blocks:
    kept.append([])
    for block in stage:
      own = [bit for name in block for bit in bits[sites[name].gates]]
      if any(own) and not all(own):
        raise UserError(
          f'structure {structure} turns off part of block {number}: expected all of its gates '
          f'({len(own)}) on, or all off'
        )
      if not own or all(own):
        kept[-1].append(number)
      number += 1
    if not kept[-1]:
      raise UserError(f'structure {structure}: expected a block that is on in every stage')
  return kept
