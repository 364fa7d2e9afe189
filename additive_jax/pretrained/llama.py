"""Llama, SmolLM, Mistral, Qwen2 and Qwen3: configs, and names of tensors."""

from __future__ import annotations

from typing import Any

from additive_jax.errors import UserError
from additive_jax.models.decoder import Decoder
from additive_jax.pretrained.family import LIST, Config, Family, expect, needed, tokens_example
from additive_jax.pretrained.leaves import leaf

ENDS = (
  leaf('embed/embedding', '~embed_tokens.weight'),
  leaf('readout/norm/scale', '~norm.weight'),
  leaf('readout/out/kernel', 'lm_head.weight', pattern='c d -> d c'),
)
LAYERS = (
  leaf('attention/norm/scale', 'input_layernorm.weight'),
  leaf('attention/q/kernel', 'self_attn.q_proj.weight', pattern='(k g u) d -> d k g u'),
  leaf('attention/q/bias', 'self_attn.q_proj.bias', pattern='(k g u) -> k g u'),
  leaf(
    'attention/kv/kernel',
    'self_attn.k_proj.weight',
    'self_attn.v_proj.weight',
    pattern='i (k u) d -> d i k u',
  ),
  leaf(
    'attention/kv/bias',
    'self_attn.k_proj.bias',
    'self_attn.v_proj.bias',
    pattern='i (k u) -> i k u',
  ),
  leaf('attention/out/kernel', 'self_attn.o_proj.weight', pattern='d (k g u) -> k g u d'),
  leaf('attention/out/bias', 'self_attn.o_proj.bias'),
  leaf('attention/q_norm/scale', 'self_attn.q_norm.weight'),
  leaf('attention/k_norm/scale', 'self_attn.k_norm.weight'),
  leaf('mlp/norm/scale', 'post_attention_layernorm.weight'),
  leaf('mlp/gate/kernel', 'mlp.gate_proj.weight', pattern='h d -> d h'),
  leaf('mlp/gate/bias', 'mlp.gate_proj.bias'),
  leaf('mlp/in/kernel', 'mlp.up_proj.weight', pattern='h d -> d h'),
  leaf('mlp/in/bias', 'mlp.up_proj.bias'),
  leaf('mlp/out/kernel', 'mlp.down_proj.weight', pattern='d h -> h d'),
  leaf('mlp/out/bias', 'mlp.down_proj.bias'),
)
LONGEST = 'max_position_embeddings'
# What the configs of a family mean by leaving something out.
DEFAULTS: dict[str, Config] = {
  'llama': {'rms_norm_eps': 1e-6, LONGEST: 2048},
  'mistral': {
    'rms_norm_eps': 1e-6,
    'num_key_value_heads': 8,
    'sliding_window': 4096,
    LONGEST: 131_072,
  },
  'qwen2': {
    'rms_norm_eps': 1e-6,
    'num_key_value_heads': 32,
    'attention_bias': True,
    LONGEST: 32_768,
  },
  'qwen3': {'rms_norm_eps': 1e-6, 'num_key_value_heads': 32, 'head_dim': 128, LONGEST: 32_768},
}
SLIDING, FULL = 'sliding_attention', 'full_attention'


def decoder(config: Config, **options: Any) -> Decoder:
  """Returns the network of a config."""
  kind = config['model_type']
  given = DEFAULTS[kind] | config
  expect(given, 'hidden_act', 'silu')
  expect(given, 'partial_rotary_factor', 1.0, None)
  tokens, width, layers, heads, hidden = needed(
    given,
    'vocab_size',
    'hidden_size',
    'num_hidden_layers',
    'num_attention_heads',
    'intermediate_size',
  )
  theta, scaling = _rotary(given)
  windows = _windows(given, kind, layers)
  return Decoder(
    layers,
    width,
    heads,
    hidden,
    tokens,
    num_kv_heads=_unless(heads, given.get('num_key_value_heads')),
    head_size=_unless(width // heads, given.get('head_dim')),
    theta=theta,
    scaling=scaling,
    epsilon=float(given['rms_norm_eps']),
    tied=bool(given.get('tie_word_embeddings', False)),
    qkv_bias=bool(given.get('attention_bias', False)),
    out_bias=kind != 'qwen2' and bool(given.get('attention_bias', False)),
    mlp_bias=bool(given.get('mlp_bias', False)),
    qk_norm=kind == 'qwen3',
    window=windows[0] if len(set(windows)) == 1 else windows,
    max_tokens=_longest(given, dict(scaling)),
    **options,
  )


def _unless(usual: int, size: int | None) -> int:
  """Returns a size, and 0, the default of a network, for the usual one."""
  return 0 if size is None or size == usual else size


def _rotary(config: Config) -> tuple[float, tuple[tuple[str, Any], ...]]:
  """Returns theta and scaling, from configs of any age."""
  given = dict(config.get('rope_parameters') or config.get('rope_scaling') or {})
  if any(isinstance(value, dict) for value in given.values()):
    raise UserError(f'rope_parameters {given}: expected the same for all layers')
  theta = given.pop('rope_theta', None) or config.get('rope_theta') or 10_000.0
  kind = given.pop('rope_type', None) or given.pop('type', None) or 'default'
  given.pop('type', None)
  expect({'model_type': config['model_type'], **given}, 'partial_rotary_factor', 1.0, None)
  given.pop('partial_rotary_factor', None)
  if kind == 'default':
    return float(theta), ()
  if kind == 'yarn' and given.get('original_max_position_embeddings') is None:
    given['original_max_position_embeddings'] = config.get(LONGEST)
  return float(theta), (('rope_type', kind), *sorted(given.items()))


def _longest(config: Config, scaling: Config) -> int:
  """Returns how many tokens a network takes: those that its config says, or those that its
  positions are stretched to.

  >>> _longest({'max_position_embeddings': 16}, {'rope_type': 'linear', 'factor': 4.0})
  64
  """
  longest = int(config[LONGEST])
  trained = scaling.get('original_max_position_embeddings') or longest
  return max(longest, int(scaling.get('factor', 1.0) * trained))


def _windows(config: Config, kind: str, layers: int) -> tuple[int, ...]:
  """Returns how many tokens each layer's tokens see at most."""
  size = config.get('sliding_window') or 0
  if kind == 'llama' or (kind != 'mistral' and not config.get('use_sliding_window', False)):
    size = 0
  types = config.get(LIST)
  if types is None:
    first = 0 if kind == 'mistral' else config.get('max_window_layers', 28)
    types = [SLIDING if i >= first else FULL for i in range(layers)]
  if len(types) != layers or set(types) - {SLIDING, FULL}:
    raise UserError(f'{LIST} {types}: expected {SLIDING} or {FULL} for each of {layers} layers')
  if kind == 'mistral':
    return (size,) * layers
  return tuple(size if name == SLIDING else 0 for name in types)


def config_of(model: Decoder) -> Config:
  """Returns a config of a network."""
  kind = 'qwen3' if model.qk_norm else 'qwen2' if _like_qwen2(model) else 'llama'
  windows = {model.window} if isinstance(model.window, int) else set(model.window)
  if windows - {0} and kind == 'llama' and not model.out_bias and len(windows) == 1:
    kind = 'mistral'
  if (
    (model.out_bias and not model.qkv_bias)
    or (model.mlp_bias and kind != 'llama')
    or (windows - {0} and kind != 'mistral')
  ):
    raise UserError(f'{model!r} as a config: expected biases and windows as of Llama or Qwen')
  rope = {**dict(model.scaling), 'rope_theta': model.theta}
  rope.setdefault('rope_type', 'default')
  names = {'llama': 'Llama', 'mistral': 'Mistral', 'qwen2': 'Qwen2', 'qwen3': 'Qwen3'}
  config = {
    'model_type': kind,
    'architectures': [f'{names[kind]}ForCausalLM'],
    'vocab_size': model.num_tokens,
    'hidden_size': model.width,
    'num_hidden_layers': model.num_layers,
    'num_attention_heads': model.num_heads,
    'num_key_value_heads': model.groups,
    'head_dim': model.units,
    'intermediate_size': model.hidden,
    'hidden_act': 'silu',
    'rms_norm_eps': model.epsilon,
    'rope_theta': model.theta,
    'rope_parameters': rope,
    'tie_word_embeddings': model.tied,
    LONGEST: model.max_tokens or 2048,
  }
  if kind == 'mistral':
    config['sliding_window'] = max(windows)
  if kind in ('llama', 'qwen3'):
    config['attention_bias'] = model.qkv_bias
  if kind == 'llama':
    config['mlp_bias'] = model.mlp_bias
  return config


def _like_qwen2(model: Decoder) -> bool:
  return model.qkv_bias and not model.out_bias


def _family(name: str, architecture: str) -> Family:
  return Family(
    name=name,
    architectures={architecture: 'model.'},
    network=Decoder,
    model=decoder,
    config=config_of,
    ends=ENDS,
    layers=LAYERS,
    layer_name='~layers.{}.',
    num_layers='num_hidden_layers',
    outputs={
      'attention': ('attention/out/kernel', 'attention/out/bias'),
      'mlp': ('mlp/out/kernel', 'mlp/out/bias'),
    },
    example=tokens_example,
    constants=(r'rotary_emb\.inv_freq',),
    tied=('lm_head.weight', '~embed_tokens.weight'),
  )


FAMILIES = (
  _family('llama', 'LlamaForCausalLM'),
  _family('mistral', 'MistralForCausalLM'),
  _family('qwen2', 'Qwen2ForCausalLM'),
  _family('qwen3', 'Qwen3ForCausalLM'),
)
