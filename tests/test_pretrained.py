"""Pretrained networks: parity with transformers by a committed file, structures exported and loaded
again, and what is no such network."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pretrained_oracle as oracle
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding

import additive_jax as aj
from additive_jax import UserError
from additive_jax.models import BERT, Decoder
from additive_jax.models.identity import describe
from additive_jax.parallel import layout
from additive_jax.parallel import mesh as mesh_
from additive_jax.pretrained import export, load, reference

# float32 on both sides, through two layers, relative to the largest logit: rounding alone.
PARITY = 1e-5


def logits_of(pretrained, x, structure=None):
  run = jax.jit(lambda v, x: pretrained.model.apply(v, x, structure))
  return np.asarray(run(pretrained.variables, x))


def check_parity(name, got, want):
  x = oracle.inputs_of(name, oracle.NETWORKS[name][2])
  if isinstance(x, dict) and 'mask' in x:
    got, want = got[x['mask'] > 0], want[x['mask'] > 0]
  assert np.abs(got - want).max() < PARITY * np.abs(want).max()
  assert (got.argmax(-1) == want.argmax(-1)).all()
  assert np.ptp(want) > 1


@pytest.mark.parametrize('name', oracle.NETWORKS)
def test_parity(name, tmp_path):
  want = oracle.read(name, tmp_path)
  found = load(tmp_path)
  check_parity(name, logits_of(found, oracle.inputs_of(name, oracle.NETWORKS[name][2])), want)


@pytest.mark.thorough
@pytest.mark.parametrize('name', oracle.NETWORKS)
def test_parity_with_transformers(name, tmp_path):
  """The same by networks that it makes now, and of what is exported."""
  if not reference.is_installed():
    pytest.skip('torch and transformers are not installed: pip install .[oracles]')
  want = oracle.make(name, tmp_path / 'tiny')
  found = load(tmp_path / 'tiny')
  check_parity(name, logits_of(found, oracle.inputs_of(name, oracle.NETWORKS[name][2])), want)
  receipt = export(found, '1100' if 'bert' in name else '1001', tmp_path / 'smaller')
  assert receipt.reference < PARITY * receipt.scale
  assert receipt.agreement == 1


@pytest.fixture
def tiny(tmp_path):
  """A Llama in a directory."""
  folder = tmp_path / 'tiny'
  folder.mkdir()
  oracle.read('llama', folder)
  return folder


@pytest.mark.parametrize(
  ('name', 'gates', 'structure', 'layers', 'zeroed'),
  [
    ('llama', None, '0011', (1,), 0),
    ('llama3 with biases, tied', None, '0110', (0, 1), 2),
    ('qwen2', None, '0011', (1,), 0),
    ('gpt2, padded', None, '1001', (0, 1), 2),
    ('bert', None, '0011', (1,), 0),
    ('bert, classes', 'branch', '0010', (0, 1), 3),
    ('vit', None, '0111', (0, 1), 1),
  ],
)
def test_export(name, gates, structure, layers, zeroed, tmp_path):
  """What is read again gives the logits of the structure."""
  folder = tmp_path / 'tiny'
  folder.mkdir()
  oracle.read(name, folder)
  found = load(folder, gates=gates)
  receipt = export(found, structure, tmp_path / 'smaller', reference=False)
  assert (receipt.layers, len(receipt.zeroed)) == (layers, zeroed)
  assert receipt.difference < 1e-6 * receipt.scale
  again = load(tmp_path / 'smaller', gates=gates)
  assert again.model.num_layers == len(layers)
  x = oracle.inputs_of(name, oracle.NETWORKS[name][2])
  want, whole = logits_of(found, x, structure), logits_of(found, x)
  assert np.abs(logits_of(again, x) - want).max() < 1e-6 * np.abs(want).max()
  assert np.abs(whole - want).max() > 0.05
  stored = json.loads((tmp_path / 'smaller' / 'additive_jax.json').read_text())
  assert stored['structure'] == structure
  tensors = safetensors.numpy.load_file(tmp_path / 'smaller' / 'model.safetensors')
  before = safetensors.numpy.load_file(folder / 'model.safetensors')
  if len(layers) == 2:  # tied weights once, poolers taken along
    assert set(tensors) == set(before)
  assert receipt.params < receipt.params_before


def test_layers_with_windows_of_their_own_keep_them(tmp_path):
  oracle.read('qwen2', tmp_path)
  assert load(tmp_path).model.window == (0, 3)
  export(load(tmp_path), '0011', tmp_path / 'last', reference=False)
  assert load(tmp_path / 'last').model.window == 3


def test_whole_layers_as_sites(tiny):
  """One gate for each layer: the pool of the same numbers, the logits of both gates."""
  x, found, whole = oracle.inputs_of('llama', ()), load(tiny), load(tiny, sites='layer')
  assert whole.model.space.names == ('layer_00/residual', 'layer_01/residual')
  np.testing.assert_allclose(
    logits_of(whole, x, '01'), logits_of(found, x, '0011'), rtol=1e-5, atol=1e-6
  )
  receipt = export(whole, '01', tiny.parent / 'smaller', reference=False)
  assert receipt.layers == (1,)


def test_a_network_of_ones_own(tmp_path):
  """Trained here, opened elsewhere."""
  model = Decoder(2, 8, 4, 12, 23, num_kv_heads=2, qkv_bias=True, theta=500.0)
  pool = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), int))
  export(model, '1111', tmp_path / 'mine', pool, reference=False)
  again = load(tmp_path / 'mine')
  assert (again.family, again.model) == ('qwen2', model.clone(max_tokens=2048))
  jax.tree.map(np.testing.assert_array_equal, again.variables, pool)
  with pytest.raises(UserError, match='export of a Decoder without variables: expected its pool'):
    export(model, '1111', tmp_path / 'other')


def test_shards_and_dtypes(tiny, monkeypatch):
  """Several files with an index; half the bytes in bfloat16, and logits of its rounding."""
  found = load(tiny, dtype='bfloat16')
  assert {leaf.dtype.name for leaf in jax.tree.leaves(found.variables)} == {'bfloat16'}
  x = oracle.inputs_of('llama', ())
  exact, rough = logits_of(load(tiny), x), logits_of(found, x)
  assert rough.dtype == np.float32
  assert 0 < np.abs(rough - exact).max() < 0.03 * np.abs(exact).max()
  monkeypatch.setattr('additive_jax.pretrained.exporting.SHARD_BYTES', 1000)
  folder = tiny.parent / 'shards'
  export(found, '1111', folder, reference=False)
  assert len(list(folder.glob('model-*-of-*.safetensors'))) > 2
  again = load(folder, dtype='bfloat16')
  jax.tree.map(np.testing.assert_array_equal, again.variables, found.variables)
  index = json.loads((folder / 'model.safetensors.index.json').read_text())
  index['weight_map'].pop('model.norm.weight')
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  with pytest.raises(UserError, match=r'model\.norm\.weight: expected it in model\.safeten'):
    load(folder)


# What rounding weights to a dtype does to logits of two layers, relative to the largest.
ROUNDING = {'float32': PARITY, 'bfloat16': 0.03, 'float16': 0.003}


@pytest.mark.parametrize(
  ('stored', 'loaded', 'asked', 'written'),
  [
    ('bfloat16', 'float32', None, 'bfloat16'),
    ('float16', 'float32', None, 'float16'),
    ('float32', 'bfloat16', None, 'bfloat16'),
    ('bfloat16', 'float32', 'float32', 'float32'),
    ('float32', 'float32', 'float16', 'float16'),
  ],
)
def test_an_export_has_the_dtype_of_its_source(stored, loaded, asked, written, tiny):
  names = safetensors.numpy.load_file(tiny / 'model.safetensors')
  retensored(tiny, **{name: tensor.astype(jnp.dtype(stored)) for name, tensor in names.items()})
  found, out = load(tiny, dtype=loaded), tiny.parent / 'out'
  healed = jax.tree.map(lambda leaf: 1.001 * leaf, found.variables)
  receipt = export(found, '1111', out, healed, reference=False, dtype=asked)
  tensors = safetensors.numpy.load_file(out / 'model.safetensors')
  assert {str(tensor.dtype) for tensor in tensors.values()} == {written}
  assert json.loads((out / 'config.json').read_text())['dtype'] == receipt.dtype == written
  assert f', in {written}; max' in str(receipt)
  assert receipt.difference <= ROUNDING[written] * receipt.scale
  if jnp.dtype(written).itemsize <= jnp.dtype(stored).itemsize:
    size = lambda folder: (folder / 'model.safetensors').stat().st_size
    assert size(out) <= size(tiny) + 100  # the header's


@pytest.mark.thorough
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_transformers_opens_an_export_in_its_dtype(dtype, tiny):
  if not reference.is_installed():
    pytest.skip('torch and transformers are not installed: pip install .[oracles]')
  import transformers

  receipt = export(load(tiny), '0011', tiny.parent / 'out', dtype=dtype)
  assert 0 < receipt.reference < 2 * ROUNDING[dtype] * receipt.scale
  # What both libraries read from the files is the same, rounded as it is.
  assert abs(receipt.reference - receipt.difference) <= PARITY * receipt.scale
  network = transformers.AutoModelForCausalLM.from_pretrained(tiny.parent / 'out', dtype='auto')
  assert str(network.dtype) == f'torch.{dtype}'


def test_carried_tensors_have_the_dtype_too(tmp_path):
  folder = tmp_path / 'bert'
  folder.mkdir()
  oracle.read('bert', folder)
  export(load(folder), '1111', tmp_path / 'out', reference=False, dtype='float16')
  tensors = safetensors.numpy.load_file(tmp_path / 'out' / 'model.safetensors')
  assert 'pooler.dense.weight' in tensors
  assert {str(tensor.dtype) for tensor in tensors.values()} == {'float16'}


ROPE = 'rope_parameters'


@pytest.mark.parametrize(
  ('name', 'changed', 'longest'),
  [
    ('llama', {}, 16),
    ('llama', {ROPE: {'rope_type': 'linear', 'factor': 2.0}}, 32),
    ('llama, yarn', {}, 16),  # 4 times 4
    ('llama3 with biases, tied', {}, 32),  # 8 times 4
    ('gpt2, padded', {}, 8),
    ('bert, masked', {}, 8),
  ],
)
def test_rows_that_are_too_long_are_refused(name, changed, longest, tmp_path):
  """By the network itself, so at every door alike."""
  oracle.read(name, tmp_path)
  edited(tmp_path, **changed)
  found = load(tmp_path)
  shape = lambda length: jax.eval_shape(
    found.model.apply, found.variables, jax.ShapeDtypeStruct((1, length), jnp.int32)
  )
  assert shape(longest).shape[1] == longest
  with pytest.raises(UserError, match=f'^{longest + 1} tokens: expected at most {longest}, max_t'):
    shape(longest + 1)
  other = found.model.clone(max_tokens=longest + 1)
  if isinstance(other, Decoder):  # runs and journals know a network by what it computes
    assert describe(other) == describe(found.model)


@pytest.mark.parametrize('axes', [{'fsdp_devices': 2}, {'fsdp_devices': 2, 'tensor_devices': 2}])
def test_onto_a_mesh(tiny, axes):
  """Each device holds its part alone, and reads no more from the file."""
  count = int(np.prod(list(axes.values())))
  mesh = mesh_.make_mesh(1, 2, jax.devices()[:count], **axes)
  found, want = load(tiny, mesh=mesh), load(tiny)
  jax.tree.map(np.testing.assert_array_equal, found.variables, want.variables)
  example = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  specs = layout.stored(layout.pool_specs(found.model, mesh, example))
  for leaf, spec in zip(jax.tree.leaves(found.variables), jax.tree.leaves(specs), strict=True):
    assert leaf.sharding == NamedSharding(mesh, spec)
  kernel = found.variables['params']['layer_00__attention']['q']['kernel']
  assert kernel.addressable_shards[0].data.size == kernel.size // count


# What is no pretrained network.


def edited(folder, **values):
  config = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(config | values))


def retensored(folder, **values):
  path = folder / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  for name, tensor in values.items():
    name = name.replace('__', '.')
    tensors.pop(name, None)
    if tensor is not None:
      tensors[name] = tensor
  safetensors.numpy.save_file(tensors, path)


def cut_off(folder, size):
  os.truncate(folder / 'model.safetensors', size)


Q = 'model__layers__0__self_attn__q_proj__weight'
BAD = {
  'no directory': (shutil.rmtree, 'is not there: expected a Hugging Face directory'),
  'no config': (lambda d: (d / 'config.json').unlink(), 'without config.json: expected a Hugging'),
  'no JSON': (lambda d: (d / 'config.json').write_text('{'), r'config.json \(.*\): expected JSON'),
  'no tensors': (
    lambda d: (d / 'model.safetensors').rename(d / 'pytorch_model.bin'),
    'with pytorch_model.bin without model.safetensors: expected model.safetensors, or',
  ),
  'a cut file': (lambda d: cut_off(d, 5000), 'model.safetensors is damaged or cut off'),
  'a cut header': (lambda d: cut_off(d, 50), 'model.safetensors is damaged or cut off'),
  'an empty file': (lambda d: cut_off(d, 0), 'model.safetensors is damaged or cut off'),
  'family': (
    lambda d: edited(d, model_type='mamba'),
    r"model_type 'mamba' of .*: expected one of llama, mistral, qwen2, qwen3, gpt2, bert, vit$",
  ),
  'architecture': (
    lambda d: edited(d, architectures=['LlamaModel']),
    r"architectures \['LlamaModel'\] of a llama config: expected one of LlamaForCausalLM",
  ),
  'quantised': (
    lambda d: edited(d, quantization_config={'quant_method': 'awq'}),
    "weights quantised by 'awq': expected plain weights",
  ),
  'activation': (
    lambda d: edited(d, hidden_act='gelu'),
    "hidden_act 'gelu' of a llama config: expected 'silu'",
  ),
  'rope': (
    lambda d: edited(d, rope_parameters={'rope_type': 'dynamic', 'factor': 2.0}),
    "rope_type 'dynamic': expected one of default, linear, llama3, yarn",
  ),
  'no size': (lambda d: edited(d, hidden_size=None), 'llama config without hidden_size: expected'),
  'no number': (
    lambda d: edited(d, hidden_size='8'),
    r'with a config that makes no llama \(.*\): expected the numbers of its config.json',
  ),
  'no index': (
    lambda d: (d / 'model.safetensors').rename(d / 'model-00001-of-00002.safetensors'),
    'with model-00001-of-00002.safetensors without model.safetensors.index.json: expected',
  ),
  'another size': (
    lambda d: edited(d, intermediate_size=13),
    r'in other shapes model.layers.0.mlp.gate_proj.weight \[12, 8\], not \[13, 8\], .* and 3 more',
  ),
  'missing': (lambda d: retensored(d, **{Q: None}), r'lacks model.layers.0.self_attn.q_proj.weig'),
  'unknown': (
    lambda d: retensored(d, model__extra=np.ones(1, np.float32)),
    'has unknown model.extra: expected the tensors of LlamaForCausalLM',
  ),
  'integers': (
    lambda d: retensored(d, **{Q: np.ones((8, 8), np.int8)}),
    'has in other than floats model.layers.0.self_attn.q_proj.weight',
  ),
  'not tied': (
    lambda d: edited(d, tie_word_embeddings=True),
    'with a lm_head.weight that is not model.embed_tokens.weight: expected tie_word_embeddings',
  ),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_directories(name, tiny):
  change, message = BAD[name]
  change(tiny)
  with pytest.raises(UserError, match=message) as caught:
    load(tiny)
  assert '\n' not in str(caught.value)


def vocabulary(count):
  tokenizers = pytest.importorskip('tokenizers')
  words = {f'w{i}': i for i in range(count)}
  return tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='w0'))


def test_tokenizer(tiny):
  vocabulary(23).save(str(tiny / 'tokenizer.json'))
  found = load(tiny)
  assert found.tokenizer.encode('w7').ids == [7]
  export(found, '1111', tiny.parent / 'again', reference=False)
  assert load(tiny.parent / 'again').tokenizer.encode('w7').ids == [7]
  vocabulary(24).save(str(tiny / 'tokenizer.json'))
  message = "with 24 tokens, of which 'w23' is 23: expected that of the network, whose vocab_size"
  with pytest.raises(UserError, match=message):
    load(tiny)
  (tiny / 'tokenizer.json').write_text('{}')
  with pytest.raises(UserError, match='expected a file that tokenizers reads'):
    load(tiny)


def test_bad_exports(tiny, monkeypatch):
  found, out = load(tiny), tiny.parent / 'out'
  with pytest.raises(UserError, match='structure 111 has 3 gates: expected 4'):
    export(found, '111', out)
  with pytest.raises(UserError, match='structure 0000 leaves no layer: expected at least one'):
    export(found, '0000', out)
  with pytest.raises(UserError, match='exists: expected a new directory, or overwrite=True'):
    export(found, '1111', tiny)
  with pytest.raises(UserError, match='is what the network was loaded from: expected another'):
    export(found, '1111', tiny, overwrite=True)
  with pytest.raises(UserError, match=r'expected .*/none to be a directory'):
    export(found, '1111', tiny.parent / 'none' / 'out')
  (tiny.parent / 'mine').mkdir()
  with pytest.raises(UserError, match=r'mine without config\.json: expected a network, to over'):
    export(found, '1111', tiny.parent / 'mine', overwrite=True)
  chunked = load(tiny, gates=('residual', 'sub_activation')).model.clone(num_chunks=2)
  with pytest.raises(UserError, match='with layer_00/mlp/join_1 off: expected residual gates off'):
    export(chunked, '110111', out, found.variables)
  with pytest.raises(UserError, match=r'a pool for Decoder on inputs .* with no embed/embedding'):
    export(found, '1111', out, {'params': {}})
  with pytest.raises(UserError, match='expected one of BERT, Decoder, GPT2, ViT'):
    export(aj.models.MLP(1, 4, 8, 3), '1', out, found.variables)
  with pytest.raises(UserError, match="dtype 'int8': expected one of float32, bfloat16, float16"):
    load(tiny, dtype='int8')
  with pytest.raises(UserError, match=r"dtype 'int8': expected one of .*, float16, or None"):
    export(found, '1111', out, dtype='int8')
  large = jax.tree.map(lambda leaf: 1e6 * leaf, found.variables)
  with pytest.raises(UserError, match=r"dtype 'float16' of .* with .*: expected bfloat16 or float"):
    export(found, '1111', out, large, dtype='float16')
  with pytest.raises(UserError, match="sites 'block': expected one of sublayer, layer"):
    load(tiny, sites='block')
  assert sorted(path.name for path in tiny.parent.iterdir()) == ['mine', 'tiny']


def test_post_norm_cannot_skip_a_lone_branch(tmp_path):
  oracle.read('bert', tmp_path)
  message = "attention of layer 0 off alone: expected whole layers off, or gates='branch'"
  with pytest.raises(UserError, match=message):
    export(load(tmp_path), '0111', tmp_path / 'out')
  with pytest.raises(UserError, match=r"'branch'\): expected one of residual, branch"):
    BERT(1, 8, 2, 8, 23, gates=('residual', 'branch'))


def test_an_interrupted_export_leaves_what_was_there(tiny, monkeypatch):
  found, out = load(tiny), tiny.parent / 'out'
  export(found, '1111', out, reference=False)
  before = (out / 'model.safetensors').read_bytes()
  assert (out / 'model.safetensors').stat().st_mode == (out / 'config.json').stat().st_mode

  def interrupted(*args, **kwargs):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr('additive_jax.pretrained.exporting.safetensors.save_file', interrupted)
    with pytest.raises(KeyboardInterrupt):
      export(found, '1100', out, overwrite=True)
  assert sorted(path.name for path in tiny.parent.iterdir()) == ['out', 'tiny']
  assert (out / 'model.safetensors').read_bytes() == before
  export(found, '1100', out, overwrite=True, reference=False)
  assert load(out).model.num_layers == 1
  assert sorted(path.name for path in tiny.parent.iterdir()) == ['out', 'tiny']
