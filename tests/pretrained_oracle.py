"""Tiny networks of every family with random weights, as transformers makes and runs them.

`python tests/pretrained_oracle.py` writes `tests/data/pretrained.npz` anew, by which parity is
tested where torch and transformers are not installed. Norm weights are random too: ones would hide
faults.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy

FILE = Path(__file__).parent / 'data' / 'pretrained.npz'
NUM_TOKENS, BATCH, TOKENS = 23, 2, 8
SIZES = {
  'vocab_size': NUM_TOKENS,
  'hidden_size': 8,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'intermediate_size': 12,
  'max_position_embeddings': 16,
}
GROUPED = SIZES | {'num_key_value_heads': 2, 'bos_token_id': 1, 'eos_token_id': 2}
SHORT = {'original_max_position_embeddings': 4}
LLAMA3 = {'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0, **SHORT}
ROPE = {
  'llama3': {'rope_type': 'llama3', 'rope_theta': 50.0, **LLAMA3},
  'yarn': {'rope_type': 'yarn', 'rope_theta': 50.0, 'factor': 4.0, **SHORT},
  'linear': {'rope_type': 'linear', 'rope_theta': 50.0, 'factor': 4.0},
}
BIASED = {'attention_bias': True, 'mlp_bias': True, 'head_dim': 6}
ENCODER = {name: size for name, size in SIZES.items() if name != 'max_position_embeddings'}
TEXTS = SIZES | {'max_position_embeddings': TOKENS}
VISION = {name: size for name, size in ENCODER.items() if name != 'vocab_size'}
WINDOWS = {'use_sliding_window': True, 'sliding_window': 3, 'max_window_layers': 1}
GPT2 = {'vocab_size': NUM_TOKENS, 'n_embd': 8, 'n_layer': 2, 'n_head': 4, 'n_positions': TOKENS}
# The class of transformers, the options of its config, and what it is given beside its tokens.
NETWORKS = {
  'llama': ('LlamaForCausalLM', GROUPED, ()),
  'llama3 with biases, tied': (
    'LlamaForCausalLM',
    GROUPED | BIASED | {'rope_parameters': ROPE['llama3'], 'tie_word_embeddings': True},
    (),
  ),
  'llama, yarn': ('LlamaForCausalLM', GROUPED | {'rope_parameters': ROPE['yarn']}, ()),
  'llama, linear, padded': (
    'LlamaForCausalLM',
    GROUPED | {'rope_parameters': ROPE['linear']},
    ('mask',),
  ),
  'mistral': ('MistralForCausalLM', GROUPED | {'sliding_window': 3}, ()),
  'qwen2': ('Qwen2ForCausalLM', GROUPED | WINDOWS, ()),
  'qwen3': ('Qwen3ForCausalLM', GROUPED | {'head_dim': 6, 'tie_word_embeddings': True}, ()),
  'gpt2, padded': ('GPT2LMHeadModel', GPT2 | {'bos_token_id': 1, 'eos_token_id': 2}, ('mask',)),
  'bert': ('BertModel', TEXTS, ('mask', 'types')),
  'bert, masked': ('BertForMaskedLM', TEXTS, ()),
  'bert, classes': ('BertForSequenceClassification', TEXTS | {'num_labels': 3}, ('types',)),
  'vit': ('ViTForImageClassification', VISION | {'image_size': 4, 'patch_size': 2}, ()),
}


def inputs_of(name, beside):
  """Inputs of the library's network, a plain array or a dict."""
  random = np.random.default_rng(1)
  if name == 'vit':
    return random.normal(size=(BATCH, 4, 4, 3)).astype(np.float32)
  tokens = random.integers(3, NUM_TOKENS, (BATCH, TOKENS)).astype(np.int32)
  x = {'tokens': tokens}
  if 'mask' in beside:  # padding on the left, as of a batch that is continued; BERT's on the right
    row = np.arange(TOKENS) >= 3
    rows = [np.ones(TOKENS, bool), row[::-1] if name == 'bert' else row]
    x['mask'] = np.stack(rows).astype(np.int32)
  if 'types' in beside:
    x['types'] = (np.arange(TOKENS)[None] > np.array([[3], [5]])).astype(np.int32)
  return x if beside else tokens


def make(name, folder):
  """Writes a network as transformers does; returns what it gives for `inputs_of`."""
  import torch
  import transformers

  transformers.logging.set_verbosity_error()
  transformers.utils.logging.disable_progress_bar()
  kind, options, beside = NETWORKS[name]
  kind = getattr(transformers, kind)
  torch.manual_seed(len(name))
  network = kind(kind.config_class(**options)).eval()
  with torch.no_grad():
    for leaf in network.parameters():
      leaf.copy_((0.4 * torch.randn_like(leaf) + float(leaf.ndim == 1)).half().float())
  network.save_pretrained(folder)
  x = inputs_of(name, beside)
  torch_of = lambda a: torch.from_numpy(np.ascontiguousarray(a).astype(np.int64))
  if name == 'vit':
    given = {'pixel_values': torch.from_numpy(x.transpose(0, 3, 1, 2).copy())}
  else:
    x = x if isinstance(x, dict) else {'tokens': x}
    names = {'tokens': 'input_ids', 'mask': 'attention_mask', 'types': 'token_type_ids'}
    given = {names[part]: torch_of(array) for part, array in x.items()}
    if 'mask' in x and name != 'bert':
      given['position_ids'] = torch_of(np.maximum(x['mask'].cumsum(1) - 1, 0))
  with torch.no_grad():
    outputs = network(**given)
  logits = outputs.logits if hasattr(outputs, 'logits') else outputs.last_hidden_state
  return logits.numpy()


def read(name, folder):
  """Writes a network of the committed file as a directory; returns what the reference gave."""
  with np.load(FILE) as stored:
    header = json.loads(str(stored[f'{name}|header']))
    numbers, tensors = stored[f'{name}|numbers'].astype(np.float32), {}
    for key, shape in header['tensors'].items():
      tensors[key], numbers = np.split(numbers, [int(np.prod(shape))])
      tensors[key] = tensors[key].reshape(shape)
    (folder / 'config.json').write_text(json.dumps(header['config']))
    safetensors.numpy.save_file(tensors, folder / 'model.safetensors', {'format': 'pt'})
    return stored[f'{name}|logits']


def main():
  arrays = {}
  for name in NETWORKS:
    with tempfile.TemporaryDirectory() as folder:
      arrays[f'{name}|logits'] = make(name, folder)
      config = json.loads((Path(folder) / 'config.json').read_text())
      tensors = safetensors.numpy.load_file(Path(folder) / 'model.safetensors')
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    arrays[f'{name}|header'] = json.dumps({'config': config, 'tensors': shapes})
    numbers = np.concatenate([tensor.ravel() for tensor in tensors.values()])
    arrays[f'{name}|numbers'] = numbers.astype(np.float16)
  np.savez_compressed(FILE, **arrays)
  print(FILE, FILE.stat().st_size)


if __name__ == '__main__':
  main()
