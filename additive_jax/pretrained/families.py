"""The families of pretrained networks that can be loaded and exported."""

from __future__ import annotations

from typing import Any

from additive_jax.errors import UserError
from additive_jax.pretrained import bert, gpt2, llama, vit
from additive_jax.pretrained.family import Config, Family

FAMILIES: dict[str, Family] = {
  family.name: family for family in (*llama.FAMILIES, gpt2.FAMILY, bert.FAMILY, vit.FAMILY)
}


def family_of(config: Config, where: Any) -> Family:
  """Returns the family of a config.

  >>> family_of({'model_type': 'mamba'}, 'config.json')
  Traceback (most recent call last):
  additive_jax.errors.UserError: model_type 'mamba' of config.json: expected one of llama, mistral,
  qwen2, qwen3, gpt2, bert, vit

  Args:
    where: the config comes from, for the error.

  Raises:
    UserError: for an unknown one, an unknown architecture, or quantised weights.
  """
  name = config.get('model_type')
  if name not in FAMILIES:
    # No name that is spelt like it is offered: configs are written by programs, not typed.
    raise UserError(f'model_type {name!r} of {where}: expected one of {", ".join(FAMILIES)}')
  if config.get('quantization_config'):
    method = config['quantization_config'].get('quant_method')
    raise UserError(f'{where} with weights quantised by {method!r}: expected plain weights')
  FAMILIES[name].architecture(config)
  return FAMILIES[name]


def family_of_model(model: Any) -> tuple[Family, Config]:
  """Returns the family of a network of the library, and a config of it.

  >>> family, config = family_of_model(aj.models.Decoder(1, 8, 2, 8, 50, qkv_bias=True))
  >>> family.name, config['hidden_size']
  ('qwen2', 8)

  Raises:
    UserError: for a network of no family.
  """
  for family in FAMILIES.values():
    if type(model) is family.network:
      config = family.config(model)
      return FAMILIES[config['model_type']], config
  known = sorted({family.network.__name__ for family in FAMILIES.values()})
  raise UserError(f'{type(model).__name__}: expected one of {", ".join(known)}')
