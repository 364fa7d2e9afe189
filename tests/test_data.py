"""Data that needs no TensorFlow Datasets: values, splits, limits, and what bad input is told."""

import functools
import gzip
import hashlib
import os
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import sklearn.datasets

from additive_jax import data
from additive_jax.errors import UserError

# Each source as it stands, nothing held out of its training part.
load = functools.partial(data.load, valid=0.0)

FASHION = '/usr/share/datasets/fashion-mnist'


def write_idx(path: pathlib.Path, values: np.ndarray) -> None:
  header = bytes([0, 0, 8, values.ndim]) + struct.pack(f'>{values.ndim}I', *values.shape)
  content = header + values.astype(np.uint8).tobytes()
  path.write_bytes(gzip.compress(content) if path.suffix == '.gz' else content)


@pytest.fixture
def idx_arrays():
  rng = np.random.default_rng(0)
  return {
    'train-images': rng.integers(0, 256, (12, 3, 5)),
    'train-labels': np.arange(12) % 4,
    't10k-images': rng.integers(0, 256, (6, 3, 5)),
    't10k-labels': np.arange(6) % 3,
  }


@pytest.fixture
def idx_folder(tmp_path, idx_arrays):
  for stem, values in idx_arrays.items():
    write_idx(tmp_path / f'{stem}-idx{values.ndim}-ubyte', values)
  return tmp_path


@pytest.fixture
def unreadable():
  """A file and a folder that this process may not read, even where the tests run as root."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    folder.chmod(0o755)
    (folder / 'file').write_bytes(b'x' * 1000)
    (folder / 'file').chmod(0)
    (folder / 'folder').mkdir(mode=0o000)
    user = os.geteuid()
    if user == 0:
      os.seteuid(65534)
    yield folder
    os.seteuid(user)


def error_of(spec: str, **options) -> str:
  with pytest.raises(UserError) as caught:
    load(spec, **options)
  message = str(caught.value)
  assert '\n' not in message
  assert (spec.partition(':')[2] or spec) in message
  return message


def assert_same_examples(one: data.Split, other: data.Split) -> None:
  indices = np.array([[0, len(one) - 1], [1, 0]])
  for a, b in zip(one[indices], other[indices]):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_data_says_what_it_is():
  assert repr(load('tabular:iris')) == (
    "Data('tabular:iris', classification, 3 outputs, "
    'train=ArraySplit(120 examples, x [4] float32, y [] int32), '
    'test=ArraySplit(30 examples, x [4] float32, y [] int32))'
  )
  read = load('digits', memory_limit=0)
  assert repr(read.train) == 'SourceSplit(1437 examples, read as needed)'
  assert ' at 0x' not in repr(read)


def test_digits_are_split_in_order():
  digits = load('digits')
  raw = sklearn.datasets.load_digits()
  assert (len(digits.train), len(digits.test)) == (1437, 360)
  assert digits.task == 'classification'
  assert digits.num_outputs == len(digits.class_names) == 10
  assert digits.example_shape == (8, 8, 1)
  assert digits.train.x.dtype == np.float32
  assert digits.train.y.dtype == np.int32
  # Sixteenths are exact in float32.
  np.testing.assert_array_equal(digits.test.x[..., 0] * 16, raw.images[1437:])
  np.testing.assert_array_equal(digits.train.y, raw.target[:1437])


def test_split_gathers_any_shape_of_indices_and_refuses_those_out_of_range():
  for split in (load('digits').train, load('digits', memory_limit=0).train):
    x, y = split[np.array([[3, 1, 3], [0, 2, 1436]])]
    assert x.shape == (2, 3, 8, 8, 1)
    assert y.shape == (2, 3)
    np.testing.assert_array_equal(x[0, 0], x[0, 2])
    assert split[np.zeros(0, int)][0].shape == (0, 8, 8, 1)
    for wrong in (-1, 1437):
      with pytest.raises(IndexError, match='expected 0 to 1436'):
        split[np.array([0, wrong])]
    with pytest.raises(TypeError, match='float64'):
      split[np.array([0.0])]


@pytest.mark.parametrize('spec', ['digits', 'tabular:wine', 'stdlib'])
def test_a_split_over_the_memory_limit_reads_the_same_examples(spec):
  whole, read = load(spec), load(spec, memory_limit=1000)
  assert whole.train.in_memory
  assert not read.train.in_memory
  assert not hasattr(read.train, 'x')
  assert read.example_shape == whole.example_shape
  for name in ('train', 'test'):
    assert len(getattr(whole, name)) == len(getattr(read, name))
    assert_same_examples(getattr(whole, name), getattr(read, name))


@pytest.mark.parametrize('mark', ['-', '.'])
@pytest.mark.parametrize('end', ['', '.gz'])
@pytest.mark.parametrize('memory_limit', [10**6, 100])
def test_idx_files_of_every_name(tmp_path, idx_arrays, mark, end, memory_limit):
  for stem, values in idx_arrays.items():
    write_idx(tmp_path / f'{stem}{mark}idx{values.ndim}-ubyte{end}', values)
  loaded = load(f'idx:{tmp_path}', memory_limit=memory_limit)
  assert loaded.train.in_memory == (memory_limit > 100)
  assert loaded.example_shape == (3, 5, 1)
  assert loaded.num_outputs == 4
  for split, part in ((loaded.train, 'train'), (loaded.test, 't10k')):
    x, y = split[np.arange(len(split))]
    assert x.dtype == np.float32
    assert y.dtype == np.int32
    expected = idx_arrays[f'{part}-images'][..., None] / 255
    # One rounding to float32 of values up to 1.
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(y, idx_arrays[f'{part}-labels'])


@pytest.mark.skipif(not os.path.isdir(FASHION), reason='package dataset-fashion-mnist not there')
def test_fashion_mnist_of_the_debian_package():
  fashion = load(f'idx:{FASHION}')
  assert (len(fashion.train), len(fashion.test)) == (60000, 10000)
  assert fashion.example_shape == (28, 28, 1)
  assert fashion.num_outputs == 10
  np.testing.assert_array_equal(np.bincount(fashion.train.y), np.full(10, 6000))
  # The published mean and deviation of the train pixels.
  assert fashion.train.x.mean() == pytest.approx(0.2860, abs=1e-4)
  assert fashion.train.x.std() == pytest.approx(0.3530, abs=1e-4)


@pytest.mark.parametrize('part', ['train', 't10k'])
def test_marks_in_idx_labels_are_no_classes(idx_folder, idx_arrays, part):
  labels = idx_arrays[f'{part}-labels'].copy()
  labels[1::3] = 255
  write_idx(idx_folder / f'{part}-labels-idx1-ubyte', labels)
  name = {'t10k': 'test'}.get(part, part)
  count = {'train': '4 of 12', 't10k': '2 of 6'}[part]
  message = f'{name}: label 255 in {count} examples, the first in example 1: expected 0 to 3'
  assert message in error_of(f'idx:{idx_folder}')


@pytest.mark.parametrize(
  ('damage', 'expected'),
  [
    (lambda path: path.unlink(), 'no train-images file'),
    (lambda path: path.write_bytes(b'\x00\x00\x08\x01' + path.read_bytes()[4:]), '0x00000801'),
    (lambda path: path.write_bytes(b''), 'starts with 0x'),
    (lambda path: path.write_bytes(path.read_bytes()[:10]), 'expected a header of 16'),
    (lambda path: path.write_bytes(path.read_bytes()[:-1]), '179 bytes .* expected 180'),
    (lambda path: path.write_bytes(path.read_bytes() + b'\x00'), 'too long.* expected 180'),
    (lambda path: write_idx(path, np.zeros((0, 3, 5))), 'empty'),
    (lambda path: write_idx(path, np.zeros((11, 3, 5))), '11 images .* 12 labels'),
    (lambda path: write_idx(path, np.zeros((12, 4, 5))), '4×5 .* 3×5'),
  ],
)
def test_idx_files_that_are_not_what_they_claim(idx_folder, damage, expected):
  damage(idx_folder / 'train-images-idx3-ubyte')
  assert re.search(expected, error_of(f'idx:{idx_folder}'))


@pytest.mark.parametrize(
  ('damage', 'expected'),
  [
    (lambda content: b'plain text', 'not a sound gzip file'),
    (lambda content: content[:-12], 'truncated'),
    (lambda content: content[:-8] + bytes(8), 'not a sound gzip file'),
    (lambda content: gzip.compress(gzip.decompress(content)[:-1]), '11 bytes .* expected 12'),
    # A header that promises 4 GiB must not allocate them.
    (
      lambda content: gzip.compress(b'\x00\x00\x08\x01\xff\xff\xff\xff' + b'\x01' * 12),
      'expected 4294967295',
    ),
  ],
)
def test_gzipped_idx_files_that_are_not_what_they_claim(idx_folder, idx_arrays, damage, expected):
  (idx_folder / 'train-labels-idx1-ubyte').unlink()
  path = idx_folder / 'train-labels-idx1-ubyte.gz'
  write_idx(path, idx_arrays['train-labels'])
  assert len(load(f'idx:{idx_folder}').train) == 12
  path.write_bytes(damage(path.read_bytes()))
  assert re.search(expected, error_of(f'idx:{idx_folder}'))


def test_stdlib_is_text_of_python_with_whole_files_held_out():
  stdlib = load('stdlib', sequence_length=64)
  assert stdlib.task == 'language'
  assert stdlib.num_outputs == 256
  assert stdlib.example_shape == (64,)
  assert stdlib.train.x.dtype == stdlib.train.y.dtype == np.uint8
  np.testing.assert_array_equal(stdlib.train.x[:, 1:], stdlib.train.y[:, :-1])
  np.testing.assert_array_equal(stdlib.train.x[1:, 0], stdlib.train.y[:-1, -1])
  # About 12 MB, whatever the release; a tenth of the files is roughly a tenth of the bytes.
  assert 5e6 < stdlib.train.x.size < 5e7
  assert 0.04 < stdlib.test.x.size / stdlib.train.x.size < 0.2
  # argparse.py lies in one split as a whole, and not in the other.
  line = b'class ArgumentParser(_AttributeHolder, _ActionsContainer):'
  found = [line in split.x.tobytes() for split in (stdlib.train, stdlib.test)]
  assert sorted(found) == [False, True]


def test_stdlib_is_the_same_in_another_process():
  code = (
    'import hashlib; from additive_jax import data; '
    'print(hashlib.sha256(data.load("stdlib").test.x.tobytes()).hexdigest())'
  )
  environment = os.environ | {'PYTHONHASHSEED': '7'}
  output = subprocess.run(
    [sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True
  ).stdout
  assert output.strip() == hashlib.sha256(load('stdlib').test.x.tobytes()).hexdigest()


@pytest.mark.parametrize('memory_limit', [10**6, 100])
def test_windows_of_a_file(tmp_path, memory_limit):
  content = np.random.default_rng(0).integers(0, 256, 1000, dtype=np.uint8)
  path = tmp_path / 'book.txt'
  content.tofile(path)
  book = load(f'text:{path}', sequence_length=7, memory_limit=memory_limit)
  assert book.train.in_memory == (memory_limit > 100)
  # The first 900 bytes hold 128 windows of 7 and a next byte, the last 100 hold 14.
  assert (len(book.train), len(book.test)) == (128, 14)
  x, y = book.train[np.arange(128)]
  for i in (0, 1, 127):
    np.testing.assert_array_equal(x[i], content[7 * i : 7 * i + 7])
    np.testing.assert_array_equal(y[i], content[7 * i + 1 : 7 * i + 8])
  np.testing.assert_array_equal(book.test[np.array([13])][0][0], content[900 + 91 : 900 + 98])


@pytest.mark.parametrize('memory_limit', [10**6, 100])
def test_a_folder_holds_out_whole_files(tmp_path, memory_limit):
  names = [f'{folder}/part{i:02d}' for folder in ('a', 'b') for i in range(30)]
  for i, name in enumerate(names):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    # Every byte of a file is the file's number, and the sizes are no multiple of the window's.
    path.write_bytes(bytes([i]) * (40 + i))
  (tmp_path / 'a' / 'empty').touch()
  (tmp_path / '.hidden').write_bytes(b'\xff' * 5000)
  (tmp_path / '.git').mkdir()
  (tmp_path / '.git' / 'blob').write_bytes(b'\xff' * 5000)
  (tmp_path / 'broken').symlink_to('nothing')
  os.mkfifo(tmp_path / 'pipe')
  folder = load(f'text:{tmp_path}', sequence_length=16, memory_limit=memory_limit)
  splits = [split[np.arange(len(split))][0] for split in (folder.train, folder.test)]
  train, test = (set(np.unique(x).tolist()) for x in splits)
  assert not train & test
  # The last bytes of a split are no whole window, so its last file may be missing.
  assert len(train | test) >= len(names) - 2
  assert max(train | test) < len(names)
  assert 1 <= len(test) <= 15
  # Files follow each other in the order of their names.
  assert (np.diff(splits[0].ravel().astype(int)) >= 0).all()


def test_the_split_of_a_file_depends_on_its_path_alone(tmp_path):
  def held_out(root, numbers):
    for i in numbers:
      (root / f'part{i:02d}').write_bytes(bytes([i]) * 64)
    return set(np.unique(load(f'text:{root}', sequence_length=8).test.x).tolist())

  one, two = tmp_path / 'one', tmp_path / 'two'
  one.mkdir()
  two.mkdir()
  assert held_out(one, range(60)) == held_out(two, range(80)) & set(range(60))


def test_a_folder_of_one_file_holds_out_its_last_tenth(tmp_path):
  content = bytes(range(200))
  (tmp_path / 'only').write_bytes(content)
  folder = load(f'text:{tmp_path}', sequence_length=4)
  assert folder.train.x.max() < 180 <= folder.test.x.min()


def test_two_windows_are_enough_and_one_byte_less_is_not(tmp_path):
  path = tmp_path / 'short.txt'
  path.write_bytes(bytes(range(10)))
  short = load(f'text:{path}', sequence_length=4)
  np.testing.assert_array_equal(short.train.x, [[0, 1, 2, 3]])
  np.testing.assert_array_equal(short.test.y, [[6, 7, 8, 9]])
  path.write_bytes(bytes(range(9)))
  assert '9 bytes; expected at least 10' in error_of(f'text:{path}', sequence_length=4)
  path.write_bytes(b'')
  assert 'empty' in error_of(f'text:{path}')


@pytest.mark.parametrize(
  ('name', 'num_train', 'num_test', 'num_features', 'num_outputs'),
  [
    ('iris', 120, 30, 4, 3),
    ('wine', 142, 36, 13, 3),
    ('breast_cancer', 455, 114, 30, 2),
    ('digits', 1438, 359, 64, 10),
    ('diabetes', 354, 88, 10, 1),
    ('linnerud', 16, 4, 3, 3),
  ],
)
def test_tables(name, num_train, num_test, num_features, num_outputs):
  table = load(f'tabular:{name}')
  assert (len(table.train), len(table.test)) == (num_train, num_test)
  assert table.example_shape == (num_features,)
  assert table.num_outputs == num_outputs
  columns = [table.train.x]
  if name in ('diabetes', 'linnerud'):
    assert table.task == 'regression'
    assert table.train.y.shape == (num_train, num_outputs)
    columns.append(table.train.y)
  else:
    assert table.task == 'classification'
    assert table.train.y.dtype == np.int32
    assert len(table.class_names) == num_outputs
    # Shuffled: the rows as they come are sorted by class, so a plain cut would miss one.
    assert set(table.train.y) == set(table.test.y) == set(range(num_outputs))
  for values in columns:
    assert values.dtype == np.float32
    # The statistics are those of float64 values before their rounding to float32.
    np.testing.assert_allclose(values.mean(axis=0, dtype=np.float64), 0, atol=1e-6)
    deviation = values.std(axis=0, dtype=np.float64)
    assert np.all((np.abs(deviation - 1) < 1e-6) | (deviation == 0))
  again = load(f'tabular:{name}')
  np.testing.assert_array_equal(again.test.x, table.test.x)


@pytest.mark.parametrize('name', ['wine', 'diabetes'])
def test_a_table_keeps_each_row_with_its_own_target(name):
  table = load(f'tabular:{name}')
  raw = getattr(sklearn.datasets, f'load_{name}')()
  x, y = (
    np.concatenate([getattr(split, part) for split in (table.train, table.test)]) for part in 'xy'
  )
  # Standardising is affine, so the extremes of a column give back what it was before.
  lowest, highest = raw.data.min(axis=0), raw.data.max(axis=0)
  share = (x - x.min(axis=0)) / (x.max(axis=0) - x.min(axis=0))
  distances = np.abs(share[:, None] - ((raw.data - lowest) / (highest - lowest))[None]).max(axis=-1)
  rows = distances.argmin(axis=1)
  # float32 keeps seven digits; no two rows of these tables are this close.
  assert distances.min(axis=1).max() < 1e-5
  assert sorted(rows) == list(range(len(raw.data)))
  target = raw.target[rows].astype(float)
  assert np.corrcoef(target, y.ravel())[0, 1] == pytest.approx(1, abs=1e-6)


def test_unknown_specs_name_the_six_kinds():
  message = error_of('digit')
  for kind in ('digits', 'stdlib', 'idx:DIR', 'text:PATH', 'tabular:NAME', 'tfds:NAME'):
    assert kind in message
  assert 'did you mean digits?' in message
  assert 'did you mean' not in error_of('qqqq')
  for spec, expected in (('idx', 'idx:DIR'), ('text:', 'text:PATH'), ('digits:8', 'digits')):
    assert error_of(spec).endswith(f'expected {expected}')


@pytest.mark.parametrize('kind', ['idx', 'text'])
def test_a_path_that_does_not_exist(tmp_path, kind):
  assert 'does not exist' in error_of(f'{kind}:{tmp_path}/nowhere')


def test_a_path_of_the_wrong_kind(tmp_path):
  (tmp_path / 'file').write_bytes(b'x')
  os.mkfifo(tmp_path / 'pipe')
  assert 'is not a folder' in error_of(f'idx:{tmp_path}/file')
  assert 'neither a file nor a folder' in error_of(f'text:{tmp_path}/pipe')
  assert 'no train-images file' in error_of(f'idx:{tmp_path}')


@pytest.mark.parametrize('spec', ['text:{}/file', 'text:{}/folder', 'idx:{}/folder', 'text:{}'])
def test_no_permission_to_read(unreadable, spec):
  assert re.search(r'cannot read .*: Permission denied', error_of(spec.format(unreadable)))


def test_a_folder_without_a_file(tmp_path):
  expected = 'the folder holds no readable file; expected at least one file of text, not hidden'
  (tmp_path / 'empty' / 'deeper').mkdir(parents=True)
  assert expected in error_of(f'text:{tmp_path}/empty')
  (tmp_path / 'empty' / '.hidden').write_bytes(b'x' * 1000)
  assert expected in error_of(f'text:{tmp_path}/empty')
  (tmp_path / 'empty' / 'deeper' / 'nothing').touch()
  assert 'the text is empty' in error_of(f'text:{tmp_path}/empty')


def test_unknown_table():
  message = error_of('tabular:irsi')
  assert 'breast_cancer' in message
  assert "did you mean 'iris'?" in message


@pytest.mark.parametrize('sequence_length', [0, -3])
def test_sequence_length_below_one(sequence_length):
  with pytest.raises(UserError, match=f'sequence_length={sequence_length}; expected at least 1'):
    load('stdlib', sequence_length=sequence_length)


def test_importing_data_imports_no_heavy_package():
  code = (
    'import sys; from additive_jax import data; '
    'print([m for m in ("tensorflow_datasets", "sklearn", "tensorflow") if m in sys.modules])'
  )
  output = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  ).stdout
  assert output.strip() == '[]'
