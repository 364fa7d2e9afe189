"""GGUF files of llama.cpp: their tensors, dequantised one at a time, and what their metadata say of
config and tokenizer."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import einops
import ml_dtypes
import numpy as np
from jaxtyping import Float

from additive_jax.data.gguf_tokens import open_gguf, tokenizer_of_metadata
from additive_jax.errors import UserError
from additive_jax.files.extras import needs
from additive_jax.pretrained.family import Config

# Names of tensors there, and in a Hugging Face directory.
ENDS = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
}
LAYERS = {
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'attn_q_norm': 'self_attn.q_norm',
  'attn_k_norm': 'self_attn.k_norm',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}
ARCHITECTURES = {
  'llama': 'LlamaForCausalLM',
  'qwen2': 'Qwen2ForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
}
# Names of the metadata, below the architecture's, and in a config.
FIELDS = {
  'block_count': 'num_hidden_layers',
  'embedding_length': 'hidden_size',
  'feed_forward_length': 'intermediate_size',
  'attention.head_count': 'num_attention_heads',
  'attention.head_count_kv': 'num_key_value_heads',
  'attention.key_length': 'head_dim',
  'attention.layer_norm_rms_epsilon': 'rms_norm_eps',
  'context_length': 'max_position_embeddings',
  'rope.freq_base': 'rope_theta',
}
FLOATS = {'F16': np.float16, 'BF16': ml_dtypes.bfloat16}
TURNED = ('self_attn.q_proj', 'self_attn.k_proj')  # by rows, in a Llama


class Quantised:
  """A tensor of a GGUF file, in floats when it is asked for.

  Attributes:
    shape: of the floats.
    dtype: float16 or bfloat16 of a tensor that is stored so, and float32 of one that is quantised;
      the floats are float32 either way.
  """

  def __init__(self, tensor: Any, heads: int, quants: Any):
    self._tensor, self._heads, self._quants = tensor, heads, quants
    self.dtype = np.dtype(FLOATS.get(tensor.tensor_type.name, np.float32))
    self.shape = tuple(int(size) for size in reversed(tensor.shape))

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> Float[np.ndarray, '...']:
    array = self._quants.dequantize(self._tensor.data, self._tensor.tensor_type)
    array = np.asarray(array, np.float32).reshape(self.shape)
    if self._heads:
      # The halves of a head, whose pairs are turned together, stand side by side there.
      array = einops.rearrange(array, '(n u i) ... -> (n i u) ...', n=self._heads, i=2)
    return array if dtype is None else array.astype(dtype)


def read_gguf(path: Path) -> tuple[Config, dict[str, Any], Any]:
  """Returns the config, tensors and tokenizer of a GGUF file, the first two in the names of a
  Hugging Face directory.

  Raises:
    UserError: for another file, a damaged one, an unknown architecture, or tensors and tokenizers
      that are unknown.
  """
  reader, fields = open_gguf(path)
  quants = needs('gguf', f'the GGUF file {path}').quants
  config = config_of_metadata(fields, path)
  heads = {
    'self_attn.q_proj': config['num_attention_heads'],
    'self_attn.k_proj': config['num_key_value_heads'],
  }
  tensors = {}
  for tensor in reader.tensors:
    name = _name(tensor.name)
    turned = next((part for part in TURNED if part in name), None)
    turns = heads[turned] if turned and config['model_type'] == 'llama' else 0
    tensors[name] = Quantised(tensor, turns, quants)
  embedding = tensors.get(ENDS['token_embd.weight'])
  config['tie_word_embeddings'] = ENDS['output.weight'] not in tensors
  config['vocab_size'] = embedding.shape[0] if embedding else None
  return config, tensors, tokenizer_of_metadata(fields, path)


def _name(name: str) -> str:
  """Returns what a tensor is called in a Hugging Face directory; others keep their names.

  >>> _name('blk.3.attn_q.weight'), _name('rope_freqs.weight')
  ('model.layers.3.self_attn.q_proj.weight', 'rope_freqs.weight')
  """
  if name in ENDS:
    return ENDS[name]
  parts = name.split('.')
  if parts[0] == 'blk' and len(parts) == 4 and parts[2] in LAYERS:
    return f'model.layers.{parts[1]}.{LAYERS[parts[2]]}.{parts[3]}'
  return name


def config_of_metadata(fields: Mapping[str, Any], path: Path) -> Config:
  """Returns the config that metadata stand for.

  Raises:
    UserError: for an unknown architecture, or something missing.
  """
  kind = fields.get('general.architecture')
  if kind not in ARCHITECTURES:
    raise UserError(f'architecture {kind!r} of {path}: expected one of {", ".join(ARCHITECTURES)}')
  value = functools.partial(_plain, fields, kind)
  config: Config = {'model_type': kind, 'architectures': [ARCHITECTURES[kind]]}
  config |= {new: value(old) for old, new in FIELDS.items() if value(old) is not None}
  missing = [old for old, new in list(FIELDS.items())[:4] if new not in config]
  if missing:
    raise UserError(f'{path} without {kind}.{missing[0]}: expected it in the metadata')
  config.setdefault('num_key_value_heads', config['num_attention_heads'])
  config.setdefault('head_dim', config['hidden_size'] // config['num_attention_heads'])
  config['hidden_act'] = 'silu'
  rope = {'rope_theta': config.get('rope_theta', 10_000.0), 'rope_type': 'default'}
  scaling = value('rope.scaling.type')
  if scaling not in (None, 'none'):
    rope |= {'rope_type': scaling, 'factor': value('rope.scaling.factor')}
    rope['original_max_position_embeddings'] = value('rope.scaling.original_context_length')
  config['rope_parameters'] = rope
  for name in ('bos', 'eos'):
    token = fields.get(f'tokenizer.ggml.{name}_token_id')
    if token is not None:
      config[f'{name}_token_id'] = int(token)
  return config


def _plain(fields: Mapping[str, Any], kind: str, name: str) -> Any:
  """Returns a value as plain Python, floats as the shortest that float32 stands for."""
  value = fields.get(f'{kind}.{name}')
  if isinstance(value, float | np.floating):
    return float(str(np.float32(value)))
  return int(value) if isinstance(value, np.integer) else value
