"""Pruning: healing by a frozen teacher, low-rank updates, calibration sets, what is exported."""

import dataclasses
import json
import signal
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import tiny

import additive_jax as aj
from additive_jax import export
from additive_jax.data.weights import Weighted
from additive_jax.errors import UserError
from additive_jax.experiments import prune
from additive_jax.experiments.options import read_options
from additive_jax.experiments.prune import tables
from additive_jax.experiments.prune.healing import last_streams
from additive_jax.experiments.start import with_pretrained
from additive_jax.pretrained import loading
from additive_jax.run import static
from additive_jax.run.generation import continued
from additive_jax.run.objectives import CrossEntropy, Distilled, Taught
from additive_jax.run.tasks import Task
from additive_jax.train.gradients import Slots, averaged_gradient
from additive_jax.train.losses import FromStream
from additive_jax.train.low_rank import low_rank
from additive_jax.train.recipe import Recipe

QUICK = {'epochs': 1.0, 'batch_size': 16, 'structures_per_step': 2, 'devices': 1, 'progress': False}


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tiny.programs(tmp_path_factory)):
    yield


@pytest.fixture(scope='module')
def arrays():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(160, 6)).astype(np.float32)
  return x, (x @ rng.normal(size=(6, 3))).argmax(1)


@pytest.fixture
def net():
  return aj.models.MLP(num_blocks=4, width=8, hidden=(4, 8, 16, 8), num_classes=3)


def test_a_teachers_streams_teach_as_its_logits_do(net, arrays, random_pool):
  x, y = arrays[0][:8], arrays[1][:8]
  variables, weight = random_pool(net, x), np.array([1.0, 0, 2, 1, 1, 1, 0.5, 1], np.float32)
  student = jax.tree.map(lambda leaf: leaf * 1.1, variables)
  student['params'] = {**student['params'], 'readout': variables['params']['readout']}
  task = Task('classification', Distilled(CrossEntropy(), 0.5, 2.0), [])
  logits = static(net, variables, x, '1111')
  streams = last_streams(net, variables, x)
  recipe = Recipe(net, task, optax.sgd(0.1), frozen=('readout',))

  def gradient(recipe, said):
    targets = Weighted(Taught(jnp.asarray(y), jnp.asarray(said)), jnp.asarray(weight))
    batch = jax.tree.map(lambda a: jnp.asarray(a)[None], (x, targets))
    slots = Slots(jnp.array([[True, False, True, True]]), *batch)
    return jax.jit(averaged_gradient, static_argnums=0)(recipe, student['params'], slots)

  want = gradient(recipe, logits)
  got = gradient(dataclasses.replace(recipe, loss=FromStream()), streams)
  np.testing.assert_allclose(got.loss, want.loss, rtol=1e-5)
  for a, b in zip(jax.tree.leaves(got.gradient), jax.tree.leaves(want.gradient)):
    np.testing.assert_allclose(a, b, atol=1e-6)
  # By hand: what counts is weighed, and both are softened.
  outputs = static(net, student, x, '1011')
  soft = lambda a: jax.nn.log_softmax(a / 2.0)
  divergence = (jnp.exp(soft(logits)) * (soft(logits) - soft(outputs))).sum(-1)
  plain = optax.softmax_cross_entropy_with_integer_labels(outputs, y)
  each = 0.5 * plain + 0.5 * 4.0 * divergence
  np.testing.assert_allclose(got.loss[0], (weight * each).sum() / weight.sum(), rtol=1e-5)


def test_low_rank_updates_are_those_of_its_factor():
  rule, pool = low_rank(optax.adam(0.1), 2), {'w': jnp.ones((6, 3, 4)), 'b': jnp.zeros(5)}
  state, new = rule.init(pool), pool
  assert {leaf.shape for leaf in jax.tree.leaves(state.inner[0].mu)} == {(2, 12), (5,)}
  for step in range(4):
    key = jax.random.key(step)
    gradient = jax.tree.map(lambda leaf, key=key: jax.random.normal(key, leaf.shape), pool)
    updates, state = rule.update(gradient, state, new)
    new = optax.apply_updates(new, updates)
  change = np.asarray(new['w'] - pool['w']).reshape(6, 12)
  assert np.linalg.matrix_rank(change, tol=1e-4) == 2
  assert low_rank(optax.sgd(1.0), 2) is not rule


def test_candidates_are_healed_together_and_ranked_again(net, arrays, tmp_path):
  options = QUICK | {'workdir': tmp_path / 'run', 'budget': 0.7, 'heal_epochs': 2.0}
  more = {'candidates': 3, 'alone': True, 'sets': 2, 'calibration_examples': 10}
  pruned = aj.prune(net, arrays, baselines=('greedy', 'random'), **options, **more)
  result = pruned.result
  healed = result.candidates.dropna(subset=['healed_rank'])
  assert len(healed) == 3
  assert str(pruned.structure) == healed.sort_values('healed_rank')['structure'].iloc[0]
  assert result.summary['after']['valid_loss'] == pytest.approx(healed['healed_valid_loss'].min())
  assert set(result.networks['network']) == {'before', 'unhealed', 'after', 'alone'}
  assert set(result.methods['method']) == {'all', 'greedy', 'random'}
  assert (result.methods['sets'] == 2).all()
  assert (result.gates['alone_ci95'] > 0).all()
  sizes = result.summary['bytes']
  assert sizes['before'] == sum(
    leaf.nbytes for leaf in jax.tree.leaves(net.init(jax.random.key(0), arrays[0]))
  )
  files = list((tmp_path / 'run' / 'exported').glob('*.safetensors'))
  assert sizes['after'] == sum(file.stat().st_size for file in files)
  inside = result.methods['flops'] <= result.methods['most'] * (1 + 1e-9)
  assert inside.all()
  assert list(result.gates['gate']) == list(net.space.names)
  module, variables = export.load(tmp_path / 'run' / 'exported')
  logits = module.apply(variables, arrays[0][:5])
  np.testing.assert_allclose(logits, pruned.model.apply(pruned.variables, arrays[0][:5]), atol=1e-5)
  # The readout, by which the teacher speaks, stays as it was.
  before = aj.restore_pool(tmp_path / 'run' / 'checkpoints' / 'pool-seed0', net, arrays[0][:1])
  after = aj.restore_pool(tmp_path / 'run' / 'checkpoints' / 'healed-seed0', net, arrays[0][:1])
  pairs = lambda part: zip(*(jax.tree.leaves(pool['params'][part]) for pool in (before, after)))
  assert all(np.array_equal(*pair) for pair in pairs('readout'))
  assert not any(np.array_equal(*pair) for pair in pairs('embed'))


def test_a_pruning_that_was_stopped_ends_as_one_that_was_not(tmp_path):
  config = tiny.config('prune', {'num_seeds': 1, 'prune.budget': 0.8, 'prune.candidates': 2})
  whole = prune.run(config, tmp_path / 'whole', devices=1)
  prune.run(config, tmp_path / 'parts', devices=1)
  for name in ('summary.json', 'journals/prune.jsonl', 'structures.csv'):
    (tmp_path / 'parts' / name).unlink(missing_ok=True)
  again = prune.run(config, tmp_path / 'parts', devices=1)
  columns = ['structure', 'loss', 'accuracy']
  pd.testing.assert_frame_equal(again.networks[columns], whole.networks[columns])
  pd.testing.assert_frame_equal(again.candidates, whole.candidates)


def test_a_killed_search_asks_nothing_twice(net, arrays, tmp_path, monkeypatch, random_pool):
  monkeypatch.setattr('additive_jax.experiments.prune.searching.ENUMERATED', 4)
  pool = random_pool(net, arrays[0][:1])
  options = QUICK | {'budget': 0.7, 'heal_epochs': 0, 'workdir': tmp_path / 'run'}
  first = aj.prune(net, arrays, pool, **options)
  (tmp_path / 'run' / 'summary.json').unlink()
  (tmp_path / 'run' / 'journals' / 'choice.jsonl').unlink()
  lines = (tmp_path / 'run' / 'journals' / 'search-0.jsonl').read_text()
  again = aj.prune(net, arrays, pool, **options)
  assert (tmp_path / 'run' / 'journals' / 'search-0.jsonl').read_text() == lines
  assert again.after['loss'] == first.after['loss']


def test_a_language_model_goes_on_with_texts(random_pool):
  sizes = {'width': 8, 'num_heads': 2, 'hidden': 16, 'num_classes': 50, 'num_tokens': 50}
  model, x = aj.models.Transformer(2, **sizes, causal=True), np.arange(6).reshape(2, 3) % 50
  pool = random_pool(model, x)
  got, tokens = continued(model, pool, x, '1011', 4), x
  for _ in range(4):
    tokens = np.c_[tokens, static(model, pool, tokens, '1011')[:, -1].argmax(-1)]
  np.testing.assert_array_equal(got, tokens[:, 3:])


def test_pruning_a_text_shows_samples_and_what_layers_do(tmp_path):
  (tmp_path / 'book.txt').write_text('the cat sat on the mat. ' * 400)
  options = {
    'data.name': f'text:{tmp_path / "book.txt"}',
    'data.sequence_length': 16,
    'model.name': 'transformer',
    'model.width': 8,
    'model.hidden': (16,),
    'model.num_heads': 2,
    'model.num_blocks': 1,
    'num_seeds': 1,
    'prune.budget': 0.8,
    'prune.sample_tokens': 5,
  }
  result = prune.run(tiny.config('prune', options), tmp_path / 'run', devices=1)
  assert list(result.samples) == ['prompt', 'text', 'before', 'after']
  assert all(len(text) == 5 for text in result.samples['text'])
  page = (tmp_path / 'run' / 'report.html').read_text()
  assert 'attention' in page
  assert 'How it goes on' in page
  assert page.index('<div class="explorer">') < page.index('<img')


def test_a_pretrained_network_is_pruned_to_a_directory_of_its_kind(tmp_path, random_pool, caplog):
  sizes = {'width': 8, 'num_heads': 2, 'hidden': 16, 'num_tokens': 256}
  model, x = aj.models.Decoder(3, **sizes), np.zeros((1, 4), np.int32)
  pool = random_pool(model, x)
  aj.pretrained.export(model, '111111', tmp_path / 'full', pool)
  (tmp_path / 'book.txt').write_text('the cat sat on the mat. ' * 400)
  options = {
    'data.name': f'text:{tmp_path / "book.txt"}',
    'data.sequence_length': 16,
    'pretrained': str(tmp_path / 'full'),
    'num_seeds': 1,
    'train.low_rank': 2,
    'prune.budget': 0.7,
    'prune.cost': 'params',
    'prune.of': 'gates',
    'prune.heal_epochs': 0.2,
    'prune.dtype': 'bfloat16',
    'data.train_examples': 10_000,
    'data.test_examples': 10_000,
  }
  result = prune.run(tiny.config('prune', options), tmp_path / 'run', devices=1)
  assert result.summary['dtype'] == 'bfloat16'
  sizes, length = result.summary['bytes'], lambda path: path.stat().st_size
  assert sizes['before'] == length(tmp_path / 'full' / 'model.safetensors')
  assert sizes['after'] < 0.55 * sizes['before']
  (told,) = [line for line in caplog.messages if 'has fewer examples' in line]
  assert 'config.data.train_examples 10,000 is all ' in told
  assert ', config.data.test_examples 10,000 is all ' in told
  methods = result.methods
  assert not methods.duplicated(['method', 'params']).any()
  assert methods['budgets'].str.split(', ').map(len).sum() == 3  # as many levels
  small = aj.pretrained.load(tmp_path / 'run' / 'exported')
  body = lambda params: params - 256 * 8 - 8
  after, before = result.summary['after']['params'], result.summary['before']['params']
  assert body(after) <= 0.7 * body(before)
  receipt = json.loads((tmp_path / 'run' / 'exported' / 'additive_jax.json').read_text())
  assert receipt['structure'] == result.summary['structure']
  assert receipt['difference'] <= 0.03 * receipt['scale']  # bfloat16 has 8 bits
  assert small.model.num_layers <= 3
  size = lambda variables: sum(leaf.size for leaf in jax.tree.leaves(variables))
  assert receipt['written'] == result.summary['written'] == size(small.variables)
  assert len(result.samples) == 2
  page = (tmp_path / 'run' / 'report.html').read_text()
  assert ('The exported files hold' in page) == bool(receipt['zeroed'])
  # Nothing that others cannot run is found, and that is said before anything is trained.
  nothing = tiny.config('prune', options | {'prune.budget': 1e-6})
  with pytest.raises(UserError, match=r'no structure within .* that was evaluated has a finite'):
    prune.run(nothing, tmp_path / 'nothing', devices=1)
  assert not list((tmp_path / 'nothing' / 'checkpoints').glob('healed*'))


def test_what_is_best_at_several_budgets_is_one_row():
  structures = {'greedy': ('110', '110', '100'), 'random': ('110', '011', '100')}
  lines = [
    {'method': method, 'set': number, 'level': level, 'most': 9.0 - 2 * level}
    | {'structure': text if number else '110', 'params': 5.0, 'loss': 1.0, 'evaluations': 7}
    for method, texts in structures.items()
    for number in range(2)
    for level, text in enumerate(texts)
  ]
  options = read_options(tiny.config('prune', {'prune.cost': 'params'}))
  session = types.SimpleNamespace(config=options, task=Task('language'))
  table = tables._methods(session, {'methods': lines, 'full': 10.0})
  assert table['budgets'].tolist() == ['0.9, 0.7', '0.5', '0.9', '0.7', '0.5']
  assert table['most'].tolist() == [7.0, 5.0, 9.0, 7.0, 5.0]
  assert (table['sets'] == 2).all()


def test_what_was_loaded_is_pruned_in_python(tmp_path, random_pool):
  model = aj.models.Decoder(2, 8, 2, 16, 20)
  pool = random_pool(model, np.zeros((1, 4), np.int32))
  aj.pretrained.export(model, '1111', tmp_path / 'full', pool)
  loaded = aj.pretrained.load(tmp_path / 'full')
  tokens = np.random.default_rng(0).integers(1, 20, (60, 9))
  data = aj.data.from_arrays(tokens[:, :-1], tokens[:, 1:], num_outputs=20)
  options = QUICK | {'workdir': tmp_path / 'run', 'budget': 0.8, 'heal_epochs': 0.5}
  pruned = aj.prune(loaded, data, **options)
  pruned.export(tmp_path / 'small')
  small = aj.pretrained.load(tmp_path / 'small')
  logits = small.model.apply(small.variables, tokens[:3])
  np.testing.assert_allclose(logits, pruned.model.apply(pruned.variables, tokens[:3]), atol=1e-5)
  assert len(repr(pruned)) < 2000
  bert = aj.models.BERT(2, 8, 2, 16, 20, head='masked')
  with pytest.raises(
    UserError, match=r'BERT, whose tokens see those that follow, for .*: expected a'
  ):
    aj.prune(bert, data, random_pool(bert, tokens[:1]), **options | {'workdir': tmp_path / 'no'})


def test_what_a_pretrained_network_is_made_to_suit(tmp_path, random_pool, monkeypatch):
  bert, x = aj.models.BERT(2, 8, 2, 16, 20), np.zeros((1, 4), np.int32)
  aj.pretrained.export(bert, '1111', tmp_path / 'bert', random_pool(bert, x), reference=False)
  read = []  # the directory once, whatever its network is made to suit
  tensors_of = loading.tensors_of
  monkeypatch.setattr(loading, 'tensors_of', lambda path: read.append(path) or tensors_of(path))
  config = tiny.config('prune', {'pretrained': str(tmp_path / 'bert')})
  _, opening, _ = with_pretrained(read_options(config), {'data': 'given'})
  assert opening['model'].space.names == ('layer_00/residual', 'layer_01/residual')
  assert read == [tmp_path / 'bert']
  long = {'data.name': 'stdlib', 'data.sequence_length': 513, 'data.tokenizer': 'some'}
  config = tiny.config('prune', {'pretrained': str(tmp_path / 'bert')} | long)
  with pytest.raises(
    UserError, match=r'config\.data\.sequence_length 513: expected at most 512, t'
  ):
    with_pretrained(read_options(config), {})
  text = tiny.config('prune', {'pretrained': str(tmp_path / 'bert'), 'data.name': 'stdlib'})
  with pytest.raises(UserError, match=r'of 20 tokens without a tokenizer, for stdlib: expected'):
    with_pretrained(read_options(text), {})


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'train.distill': 0.5}, 'config.train.distill 0.5 with config.prune.teacher'),
    ({'pretrained': 'nowhere'}, "pretrained network .*nowhere' is not there"),
    ({'train.low_rank': 2, 'train.zero': True}, 'config.train.low_rank 2 with config.train.zero'),
    ({'num_seeds': 2}, 'config.num_seeds 2: expected 1'),
    ({'prune.sets': 2}, 'config.prune.sets 2 with config.prune.calibration_examples 0'),
  ],
)
def test_options_that_do_not_suit_a_pruning(tmp_path, given, message):
  config = tiny.config('prune', {'num_seeds': 1} | given)
  with pytest.raises(UserError, match=message):
    prune.run(config, tmp_path / 'run', devices=1)
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_signal_while_structures_are_judged_is_heard(tmp_path):
  script = (
    'import os, signal, sys, threading\n'
    'import numpy as np, additive_jax as aj\n'
    'from additive_jax.run import evaluate\n'
    'sums = evaluate._sums\n'
    'def slow(*args):\n'
    '  os.kill(os.getpid(), signal.SIGTERM)\n'
    '  return sums(*args)\n'
    'evaluate._sums = slow\n'
    'x = np.random.default_rng(0).normal(size=(200, 6)).astype("f"); y = np.arange(200) % 3\n'
    'aj.prune(aj.models.MLP(4, 8, 8, 3), (x, y), epochs=1.0, batch_size=32)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 75, done.stderr
  assert signal.SIGTERM.name in done.stderr
