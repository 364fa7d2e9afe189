"""What a structure leaves of a pretrained network: layers that are dropped, and branches that give
zero because their layer stays."""

from __future__ import annotations

import dataclasses
from typing import Any

from additive_jax.errors import UserError
from additive_jax.gates.structure import Structure
from additive_jax.models.kinds import BRANCH, RESIDUAL
from additive_jax.models.layer_sites import LAYER
from additive_jax.pretrained.family import LIST, Config, Family

BRANCHES = ('attention', 'mlp')


@dataclasses.dataclass(frozen=True)
class Kept:
  """What stays of a network.

  Attributes:
    layers: the numbers of those that stay, in order.
    zeroed: branches (layer, name) that are off in a layer that stays: their output matrices become
      zero, which is exact, and saves no time.
  """

  layers: tuple[int, ...]
  zeroed: tuple[tuple[int, str], ...]


def kept(model: Any, structure: Structure) -> Kept:
  """Returns what a structure leaves.

  >>> model = aj.models.Decoder(3, 8, 2, 8, 50)
  >>> kept(model, aj.Structure.from_string('110001'))
  Kept(layers=(0, 2), zeroed=((2, 'attention'),))

  Raises:
    UserError: for a structure that the reference implementation cannot run.
  """
  on = dict(zip(model.space.names, structure.bits))
  if inner := [n for n, bit in on.items() if not bit and _kind(n) not in (RESIDUAL, BRANCH)]:
    raise UserError(
      f'structure {structure} with {inner[0]} off: expected residual gates off alone, for the '
      'reference implementation has no others'
    )
  digits = max(2, len(str(model.num_layers - 1)))
  layers, zeroed = [], []
  for i in range(model.num_layers):
    name = f'layer_{i:0{digits}}'
    if model.sites_by == LAYER:
      values = (on[f'{name}/{RESIDUAL}'],) * 2
    else:
      values = tuple(
        next((bit for n, bit in on.items() if n.startswith(f'{name}/{branch}/')), True)
        for branch in BRANCHES
      )
    drops = not any(values) and BRANCH not in model.gates
    if not drops:
      layers.append(i)
      zeroed += [(i, branch) for branch, bit in zip(BRANCHES, values) if not bit]
  if zeroed and getattr(model, 'post_norm', False) and BRANCH not in model.gates:
    i, branch = zeroed[0]
    raise UserError(
      f'structure {structure} with {branch} of layer {i} off alone: expected whole layers off, or '
      f'gates={BRANCH!r}, for the reference implementation keeps the norm after it'
    )
  if not layers:
    raise UserError(f'structure {structure} leaves no layer: expected at least one')
  return Kept(tuple(layers), tuple(zeroed))


def _kind(name: str) -> str:
  return name.rsplit('/', 1)[-1]


def smaller_config(family: Family, config: Config, layers: tuple[int, ...], dtype: str) -> Config:
  """Returns the config of a network of which these layers stay.

  >>> from additive_jax.pretrained.families import FAMILIES
  >>> smaller_config(FAMILIES['llama'], {'num_hidden_layers': 3}, (0, 2), 'float32')
  {'num_hidden_layers': 2, 'dtype': 'float32'}
  """
  smaller = {**config, family.num_layers: len(layers), 'dtype': dtype}
  if 'torch_dtype' in smaller:
    smaller['torch_dtype'] = dtype
  if isinstance(config.get(LIST), list):
    smaller[LIST] = [config[LIST][i] for i in layers]
  elif 'max_window_layers' in config:  # the first that have a window, of those that stay
    smaller['max_window_layers'] = sum(i < config['max_window_layers'] for i in layers)
  return smaller
