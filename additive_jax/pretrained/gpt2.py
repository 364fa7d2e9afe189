"""GPT-2: configs, and names of tensors. Its matrices are [inputs, outputs], as the pool's."""

from __future__ import annotations

from typing import Any

from additive_jax.models.gpt2 import GPT2
from additive_jax.pretrained.family import Config, Family, expect, needed, tokens_example
from additive_jax.pretrained.leaves import leaf

ENDS = (
  leaf('embed/embedding', '~wte.weight'),
  leaf('position/embedding', '~wpe.weight'),
  leaf('readout/norm/scale', '~ln_f.weight'),
  leaf('readout/norm/bias', '~ln_f.bias'),
  leaf('readout/out/kernel', 'lm_head.weight', pattern='c d -> d c'),
)
LAYERS = (
  leaf('attention/norm/scale', 'ln_1.weight'),
  leaf('attention/norm/bias', 'ln_1.bias'),
  leaf('attention/qkv/kernel', 'attn.c_attn.weight', pattern='d (i n u) -> d i n u'),
  leaf('attention/qkv/bias', 'attn.c_attn.bias', pattern='(i n u) -> i n u'),
  leaf('attention/out/kernel', 'attn.c_proj.weight', pattern='(n u) d -> n u d'),
  leaf('attention/out/bias', 'attn.c_proj.bias'),
  leaf('mlp/norm/scale', 'ln_2.weight'),
  leaf('mlp/norm/bias', 'ln_2.bias'),
  leaf('mlp/in/kernel', 'mlp.c_fc.weight'),
  leaf('mlp/in/bias', 'mlp.c_fc.bias'),
  leaf('mlp/out/kernel', 'mlp.c_proj.weight'),
  leaf('mlp/out/bias', 'mlp.c_proj.bias'),
)


def network(config: Config, **options: Any) -> GPT2:
  """Returns the network of a config."""
  for name in ('scale_attn_by_inverse_layer_idx', 'reorder_and_upcast_attn', 'add_cross_attention'):
    expect(config, name, False)
  expect(config, 'scale_attn_weights', True)
  tokens, width, layers, heads = needed(config, 'vocab_size', 'n_embd', 'n_layer', 'n_head')
  return GPT2(
    layers,
    width,
    heads,
    config.get('n_inner') or 4 * width,
    tokens,
    max_tokens=config.get('n_positions', 1024),
    epsilon=float(config.get('layer_norm_epsilon', 1e-5)),
    activation=config.get('activation_function', 'gelu_new'),
    tied=bool(config.get('tie_word_embeddings', True)),
    **options,
  )


def config_of(model: GPT2) -> Config:
  """Returns a config of a network."""
  return {
    'model_type': 'gpt2',
    'architectures': ['GPT2LMHeadModel'],
    'vocab_size': model.num_tokens,
    'n_embd': model.width,
    'n_layer': model.num_layers,
    'n_head': model.num_heads,
    'n_inner': model.hidden,
    'n_positions': model.max_tokens,
    'activation_function': model.activation,
    'layer_norm_epsilon': model.epsilon,
    'tie_word_embeddings': model.tied,
  }


FAMILY = Family(
  name='gpt2',
  architectures={'GPT2LMHeadModel': 'transformer.'},
  network=GPT2,
  model=network,
  config=config_of,
  ends=ENDS,
  layers=LAYERS,
  layer_name='~h.{}.',
  num_layers='n_layer',
  outputs={
    'attention': ('attention/out/kernel', 'attention/out/bias'),
    'mlp': ('mlp/out/kernel', 'mlp/out/bias'),
  },
  example=tokens_example,
  sizes=lambda model: {'i': 3, 'n': model.num_heads},
  constants=(r'attn\.bias', r'attn\.masked_bias'),
  tied=('lm_head.weight', '~wte.weight'),
)
