"""Texts as tokens: documents that are packed and never cross, split whole, and one line for what
cannot be."""

import json
import sys

import jax
import numpy as np
import pytest
import tiny

import additive_jax as aj
from additive_jax import UserError
from additive_jax.compress.cutting import cut, logits, receipt
from additive_jax.data.digests import digest
from additive_jax.data.packing import Documents, Rows
from additive_jax.experiments.network import make_model
from additive_jax.experiments.options import ModelOptions
from additive_jax.experiments.studies import STUDIES
from additive_jax.models import Decoder, Transformer
from additive_jax.models.active import active_flops
from additive_jax.models.moe import Experts

tokenizers = pytest.importorskip('tokenizers')

SIZES = {'width': 8, 'num_heads': 2, 'hidden': 8}
WORDS = ['the', 'gate', 'is', 'on', 'off', 'while', 'a', 'small', 'network', 'reads', 'text']
RANDOM = np.random.default_rng(0)
# No two documents share a word, so that a token tells whose it is.
APART = [' '.join(f'd{i}w{j}' for j in range(3 + i % 5)) for i in range(30)]


@pytest.fixture(scope='module')
def texts():
  return [' '.join(RANDOM.choice(WORDS, size)) for size in RANDOM.integers(2, 30, 40)]


@pytest.fixture(scope='module')
def tokenizer(texts):
  """A byte-level BPE, trained here."""
  found = tokenizers.Tokenizer(tokenizers.models.BPE())
  found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  found.decoder = tokenizers.decoders.ByteLevel()
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=280, show_progress=False, initial_alphabet=alphabet
  )
  found.train_from_iterator(texts, trainer)
  return found


@pytest.fixture(scope='module')
def saved(tokenizer, tmp_path_factory):
  path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json'
  tokenizer.save(str(path))
  return path


@pytest.fixture(scope='module')
def words():
  """A tokenizer of the words of `APART`."""
  known = {word: i for i, word in enumerate(['?', *' '.join(APART).split()])}
  found = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token='?'))
  found.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return found


def documents_of(split, words):
  """The numbers of the documents in a split, by their words."""
  x = split[np.arange(len(split))][0]
  known = [words.id_to_token(token) for token in x['tokens'][x['segments'] > 0]]
  return {int(word[1:].split('w')[0]) for word in known if word}


@pytest.mark.parametrize('length', [2, 5, 8])
def test_rows_hold_every_document_once(length):
  """Against a plain loop over rows and segments."""
  documents = [RANDOM.integers(1, 99, size).astype(np.int32) for size in RANDOM.integers(2, 20, 50)]
  rows = Rows(Documents.joined(documents), length)
  x, y = rows.gather(np.arange(len(rows)))
  found = []
  for row in range(len(rows)):
    segments = x['segments'][row]
    numbers = [number for number in dict.fromkeys(segments.tolist()) if number]
    assert numbers == list(range(1, len(numbers) + 1))
    assert not segments[np.argmin(segments > 0) :].any() or (segments > 0).all()
    assert not x['tokens'][row][segments == 0].any()
    for number in numbers:
      (places,) = np.nonzero(segments == number)
      assert (np.diff(places) == 1).all()
      tokens = x['tokens'][row][places]
      np.testing.assert_array_equal(y.y[row][places[:-1]], tokens[1:])
      np.testing.assert_array_equal(y.weight[row][places], [1] * (len(places) - 1) + [0])
      found.append(tokens.tolist())
  cut = [list(d[i : i + length]) for d in documents for i in range(0, len(d), length)]
  assert sorted(found) == sorted(piece for piece in cut if len(piece) > 1)
  assert y.weight.sum() == sum(len(piece) - 1 for piece in found)
  some = np.array([len(rows) - 1, 0])
  again = rows.gather(some)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[some], b), (x, y), again)


MODELS = {
  'decoder': Decoder(1, num_tokens=280, num_kv_heads=1, **SIZES),
  'transformer': Transformer(
    1, **SIZES, num_classes=280, num_tokens=280, causal=True, max_tokens=16, gates=('lane',)
  ),
}


@pytest.mark.parametrize('name', MODELS)
def test_the_loss_is_that_of_documents_alone(name, texts, tokenizer):
  """Packed and padded, it is the mean over all tokens of documents that stand by themselves."""
  model, some = MODELS[name], texts[:4]
  data = aj.data.from_texts(texts[4:], tokenizer, sequence_length=16, valid=0.0, test=some)
  split = data.test
  assert split.x['segments'].max() > 1
  assert (split.x['segments'] == 0).any()
  assert data.num_outputs == 280
  pool = jax.jit(model.init)(jax.random.key(0), split.x)
  total = count = 0.0
  apply = jax.jit(model.apply)
  for text in some:
    ids = np.array(tokenizer.encode(text).ids)
    for start in range(0, len(ids), 16):
      piece = ids[None, start : start + 16]
      logits = np.asarray(apply(pool, piece), np.float64)[0, :-1]
      logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
      total -= logits[np.arange(len(logits)), piece[0, 1:]].sum()
      count += len(logits)
  found = aj.evaluate_structures(
    model, pool, split, [aj.Structure.from_string('1' * model.space.num_gates)]
  )
  np.testing.assert_allclose(np.asarray(found.loss)[0], total / count, rtol=1e-5)
  crossing = {'tokens': split.x['tokens'], 'segments': np.ones_like(split.x['segments'])}
  different = np.asarray(apply(pool, crossing)) - np.asarray(apply(pool, split.x))
  assert np.abs(different).max() > 1e-3


def test_what_is_cut_out_takes_documents(texts, tokenizer):
  """The smaller network gives what the one with gates does, and less is not the same."""
  data = aj.data.from_texts(texts, tokenizer, sequence_length=16)
  model, x = MODELS['transformer'].clone(gates=('residual',)), data.test.x
  pool = jax.jit(model.init)(jax.random.key(0), x)
  smaller = cut(model, pool, '10')
  assert receipt(smaller, model, pool, x).max_difference < 1e-5
  alone = logits(smaller.model, smaller.variables, x['tokens'])
  assert np.abs(alone - logits(smaller.model, smaller.variables, x)).max() > 1e-3


def test_tokens_that_choose_have_a_cost(texts, tokenizer):
  data = aj.data.from_texts(texts, tokenizer, sequence_length=16)
  x = {name: leaf[:1] for name, leaf in data.test.x.items()}
  model = MODELS['transformer'].clone(gates=('residual',), routing=Experts(2, top_k=1))
  assert active_flops(model, x) >= active_flops(model, x['tokens']) > 0


def test_documents_are_in_one_split(words):
  load = lambda **options: aj.data.from_texts(APART, words, sequence_length=8, **options)
  data = load(valid=0.2, test=0.3)
  found = {part: documents_of(split, words) for part, split in data.splits.items()}
  assert {part: len(some) for part, some in found.items()} == {'train': 15, 'valid': 6, 'test': 9}
  assert set().union(*found.values()) == set(range(30))
  assert digest(load(valid=0.2, test=0.3)) == digest(data) != digest(load(seed=1))
  ordered = load(valid=0.2, test=0.3, seed=None)
  assert documents_of(ordered.test, words) == set(range(21, 30))
  assert documents_of(ordered.valid, words) == set(range(15, 21))
  given = load(valid=0.0, test=(text for text in APART[:3]))
  assert given.valid is None
  assert documents_of(given.test, words) == {0, 1, 2}


def test_files_and_lines_are_documents(words, tmp_path, caplog):
  (tmp_path / 'below').mkdir()
  for i in range(10):
    (tmp_path / 'below' / f'{i}.txt').write_text(APART[i])
  lines = [json.dumps({'text': text, 'of': 'lines'}) for text in APART[10:]]
  (tmp_path / 'lines.jsonl').write_text('\n'.join([lines[0], '', *lines[1:]]) + '\n')
  load = lambda **options: aj.data.load(
    f'text:{tmp_path}', tokenizer=words, sequence_length=8, **options
  )
  data = load()
  found = {part: documents_of(split, words) for part, split in data.splits.items()}
  assert {part: len(some) for part, some in found.items()} == {'train': 24, 'valid': 3, 'test': 3}
  assert set().union(*found.values()) == set(range(30))
  assert load(valid=0.0).valid is None
  assert documents_of(load(valid=0.5).test, words) == found['test']
  assert len(documents_of(load(valid=0.5).valid, words)) == 14
  assert not caplog.messages
  (tmp_path / 'empty.txt').write_text(' \n')
  assert digest(load()) == digest(data)
  assert 'skipped 1 of 31 documents, which are empty or of one token; the first is empty.txt' in (
    caplog.text
  )


def test_a_single_document_is_cut_by_position(words, tmp_path):
  text = ' '.join(APART)
  (tmp_path / 'book.txt').write_text(text)
  data = aj.data.load(f'text:{tmp_path}/book.txt', tokenizer=words, sequence_length=8)
  parts = {part: split[np.arange(len(split))][0] for part, split in data.splits.items()}
  joined = [x['tokens'][x['segments'] > 0] for x in parts.values()]
  ids = words.encode(text).ids
  assert [len(some) for some in joined] == [120, 15, 15]
  assert np.concatenate(joined).tolist() == ids


def test_what_a_tokenizer_does_by_itself(words, tmp_path):
  """Special tokens are added; it neither pads nor cuts, and the caller's stays as it is."""
  own = tokenizers.Tokenizer.from_str(words.to_str())
  own.add_special_tokens(['<s>'])
  own.post_processor = tokenizers.processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', own.token_to_id('<s>'))]
  )
  own.enable_truncation(4)
  own.enable_padding(length=40)
  data = aj.data.from_texts(APART, own, sequence_length=8, valid=0.0, seed=None)
  x = data.train.x
  assert data.num_outputs == own.get_vocab_size() == own.token_to_id('<s>') + 1
  assert x['tokens'][:, 0].tolist() == [own.token_to_id('<s>')] * len(data.train)
  assert documents_of(data.test, words) == set(range(24, 30))
  assert (own.truncation['max_length'], own.padding['length']) == (4, 40)
  (tmp_path / 'network').mkdir()
  own.save(str(tmp_path / 'network' / 'tokenizer.json'))
  again = aj.data.from_texts(APART, tmp_path / 'network', sequence_length=8, valid=0.0, seed=None)
  assert digest(again) == digest(data)


def test_a_tokenizer_of_gguf(tmp_path, texts):
  gguf = pytest.importorskip('gguf')
  writer = gguf.GGUFWriter(tmp_path / 'tiny.gguf', 'llama')
  words = ['a', 'b', 'Ġ', 'ab', '<s>']
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre('gpt-2')
  writer.add_token_list(words)
  writer.add_token_types([1, 1, 1, 1, 3])
  writer.add_token_merges(['a b'])
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  data = aj.data.from_texts(
    ['ab a', 'b ab', 'aab'], tmp_path / 'tiny.gguf', sequence_length=2, valid=0.0, test=['ab a']
  )
  assert data.num_outputs == 5
  assert data.test.x['tokens'].tolist() == [[3, 2]]


def test_what_exceeds_the_memory_limit_is_the_same(texts, tokenizer):
  load = lambda **options: aj.data.from_texts(texts, tokenizer, sequence_length=16, **options)
  near, far = load(), load(memory_limit=0)
  assert (near.train.in_memory, far.train.in_memory) == (True, False)
  some = np.arange(len(near.train))[::-1]
  jax.tree.map(np.testing.assert_array_equal, near.train[some], far.train[some])


RUN = {
  'num_seeds': 1,
  'data.sequence_length': 16,
  'data.valid': -1.0,
  'sweep.modes': ('shared',),
  'sweep.shared_epochs': 1.0,
  'model.name': 'additive_jax.models:Decoder',
  'model.kwargs': {'num_layers': 1, 'num_kv_heads': 1, **SIZES},
}


def test_a_sweep_from_a_config(texts, saved, tmp_path):
  folder = tmp_path / 'texts'
  folder.mkdir()
  lines = [json.dumps({'text': text}) for text in texts]
  (folder / 'lines.jsonl').write_text('\n'.join(lines))
  named = {'data.name': f'text:{folder}', 'data.tokenizer': str(saved)}
  config = tiny.config('sweep', RUN | named)
  result = STUDIES['sweep'].run(config, tmp_path / 'run', devices=1)
  assert len(result.table) == 4
  assert np.isfinite(result.table['loss']).all()
  stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert stored['data']['tokenizer'] == str(saved)
  assert stored['model']['fields'].count('num_tokens=280') == 1


def test_the_network_of_a_config(texts, tokenizer):
  data = aj.data.from_texts(texts, tokenizer, sequence_length=16)
  model = make_model(ModelOptions('transformer', num_blocks=1), data)
  assert (model.num_tokens, model.num_classes, model.max_tokens) == (280, 280, 16)
  assert model.causal
  own = {'num_layers': 1, 'num_tokens': 300, **SIZES}
  padded = ModelOptions('additive_jax.models:Decoder', kwargs=own)
  assert make_model(padded, data).num_tokens == 300
  with pytest.raises(UserError, match='model mlp on texts, text: expected images or a table'):
    make_model(ModelOptions('mlp'), data)


def test_a_vocabulary_that_is_larger_than_the_network(texts, tokenizer):
  data = aj.data.from_texts(texts, tokenizer, sequence_length=16)
  small = Decoder(1, num_tokens=200, **SIZES)
  with pytest.raises(UserError) as caught:
    aj.sweep(small, data, epochs=1.0)
  assert str(caught.value) == (
    'Decoder with num_tokens 200 gives outputs (1, 16, 200) for one example: expected 280 on the '
    'last axis, the size of the vocabulary of texts'
  )
  x = {name: leaf[:2] for name, leaf in data.train.x.items()}
  pool = jax.jit(small.init)(jax.random.key(0), x)
  with pytest.raises(UserError, match=r'token \d+ in .* expected 0 to 199, one of 200'):
    aj.evaluate_structures(small, pool, data.train, ['11'])


BAD = {
  'no such tokenizer': (
    lambda d: {'tokenizer': str(d / 'none.json')},
    r"tokenizer '.*none\.json' does not exist: expected a tokenizer\.json, a directory",
  ),
  'a damaged tokenizer': (
    lambda d: {'tokenizer': wrote(d / 'bad.json', '{"model":')},
    r"tokenizer '.*bad\.json' \(.*\): expected a file that tokenizers reads",
  ),
  'a directory without one': (
    lambda d: {'tokenizer': str(d)},
    r"tokenizer '.*' is not in there: expected a tokenizer\.json",
  ),
  'no tokenizer': (
    lambda d: {'tokenizer': 7},
    'tokenizer of type int: expected that of tokenizers',
  ),
  'a tokenizer for images': (
    lambda d: {'spec': 'digits', 'tokenizer': 'a.json'},
    "tokenizer 'a.json' of digits: expected none, or text:PATH or stdlib",
  ),
  'too little text': (
    lambda d: {'spec': f'text:{wrote(d / "a.txt", "a b c d e f g h i j")}', 'valid': 0.0},
    r'text:.*: 8 tokens in the train split; expected at least 64, one row of sequence_length=64',
  ),
  'no text': (
    lambda d: {'spec': f'text:{wrote(d / "a.txt", "")}'},
    r'text:.*: no document of 2 tokens or more; expected some text',
  ),
  'too few documents': (
    lambda d: {'spec': f'text:{wrote(d / "a.jsonl", LINE + LINE)}'},
    '2 documents, of which 1 test and 1 valid leave none to learn from: expected more',
  ),
  'no JSON': (
    lambda d: {'spec': f'text:{wrote(d / "a.jsonl", LINE + "{once")}'},
    r"line 2 of '.*a\.jsonl' is no JSON \(Expecting .*\): expected an object with a 'text'",
  ),
  'another key': (
    lambda d: {'spec': f'text:{wrote(d / "a.jsonl", LINE + """{"txt": "a"}""")}'},
    r"line 2 of '.*a\.jsonl' has 'txt': expected an object with a 'text'",
  ),
  'a number': (
    lambda d: {'spec': f'text:{wrote(d / "a.jsonl", """{"text": 3}""")}'},
    r"line 1 of '.*a\.jsonl' has a 'text' of type int: expected text",
  ),
  'a list': (
    lambda d: {'spec': f'text:{wrote(d / "a.jsonl", "[1]")}'},
    r"line 1 of '.*a\.jsonl' is a list: expected an object with a 'text'",
  ),
  'other bytes': (
    lambda d: {'spec': f'text:{wrote(d / "a.txt", bytes([65, 255]))}'},
    r"a\.txt' \(invalid start byte at byte 1\): expected text in UTF-8",
  ),
  'a row of one': (
    lambda d: {'sequence_length': 1},
    'sequence_length=1 of tokens; expected at least 2, a token and the next',
  ),
  'a share': (lambda d: {'valid': 2.0}, 'valid 2.0: expected -1, for a fifth'),
}
LINE = json.dumps({'text': 'a b c'}) + '\n'


def wrote(path, text):
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  return str(path)


@pytest.mark.parametrize('name', BAD)
def test_what_cannot_be_is_one_line(name, words, tmp_path):
  make, message = BAD[name]
  book = tmp_path / 'book'
  book.mkdir()
  wrote(book / 'book.txt', ' '.join(APART))
  options = {'spec': f'text:{book}', 'tokenizer': words, 'sequence_length': 64} | make(tmp_path)
  with pytest.raises(UserError, match=message) as caught:
    aj.data.load(options.pop('spec'), **options)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('documents', 'options', 'message'),
  [
    ('one text', {}, 'documents of type str: expected a list of texts'),
    (['a b', 7], {}, 'document 1 of type int: expected text'),
    (APART, {'test': 0.0}, 'test 0.0 of texts: expected a share above 0 and below 1'),
    (APART[:4], {}, 'valid 0.1 of the 4 documents of texts is none: expected some'),
    (APART, {'valid': 0.5, 'test': 0.5}, '30 documents, of which 15 test and 15 valid leave none'),
  ],
)
def test_texts_that_cannot_be(documents, options, message, words):
  with pytest.raises(UserError) as caught:
    aj.data.from_texts(documents, words, sequence_length=4, **options)
  assert message in str(caught.value)


def test_a_tokenizer_that_fails():
  small = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0}, unk_token='?'))
  with pytest.raises(UserError, match=r'the tokenizer fails on documents 0 to 1 \(.*\): expected'):
    aj.data.from_texts(['a a', 'b'], small)


def test_without_the_package(monkeypatch, saved, tmp_path):
  monkeypatch.setitem(sys.modules, 'tokenizers', None)
  wrote(tmp_path / 'a.txt', 'a b c')
  with pytest.raises(UserError, match=r"needs tokenizers: expected pip install 'additive_jax\["):
    aj.data.load(f'text:{tmp_path}', tokenizer=saved)


def test_clusters_are_of_one_array(texts, tokenizer, tmp_path):
  data = aj.data.from_texts(texts, tokenizer, sequence_length=16)
  options = {'model.name': 'transformer', 'model.num_heads': 2, 'train.structures_per_step': 1}
  config = tiny.config('booster', options)
  with pytest.raises(UserError, match='expected others than clusters, which are of one array'):
    STUDIES['booster'].run(config, tmp_path / 'run', devices=1, data=data)
  assert not (tmp_path / 'run').exists()


def test_dna_takes_tokens_alone(texts, tokenizer):
  """Its modules choose tokens by themselves, and know no documents."""
  data = aj.data.from_texts(texts, tokenizer, sequence_length=16)
  model = aj.models.DNA(1, **SIZES, num_classes=280, num_tokens=280, causal=True)
  with pytest.raises(
    UserError, match=r'expected one array \[B, \.\.\.\], which this network takes'
  ):
    jax.eval_shape(model.init, jax.random.key(0), data.train.x)
