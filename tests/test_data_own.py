"""Tables and folders of images of one's own: values, splits, and what bad input is told."""

import functools
import re

import numpy as np
import pandas as pd
import pytest
import tiny
from PIL import Image

from additive_jax import Task, UserError, data
from additive_jax.experiments.opening import load_data
from additive_jax.experiments.options import DataOptions, Options, TaskOptions
from additive_jax.experiments.studies import STUDIES
from additive_jax.experiments.task import make_task

# Each source as it stands, nothing held out of its training part.
load = functools.partial(data.load, valid=0.0)

NUM = 40
WEIGHED = {'target': 'price', 'weight': 'weight'}


def frame():
  rng = np.random.default_rng(0)
  return pd.DataFrame(
    {
      'age': rng.integers(18, 90, NUM),
      'income': rng.normal(50_000.0, 9_000.0, NUM),
      'town': rng.choice(['Bonn', 'Köln', 'Ulm'], NUM),
      'member': rng.random(NUM) < 0.5,
      'price': rng.normal(3.0, 2.0, NUM),
      'rooms': rng.integers(1, 5, NUM),
      'weight': rng.random(NUM) + 0.5,
      'part': np.resize(['train', 'train', 'valid', 'test'], NUM),
    }
  )


@pytest.fixture(params=['csv', 'csv.gz', 'tsv', 'parquet'])
def table(request, tmp_path):
  path = tmp_path / f'houses.{request.param}'
  if request.param == 'parquet':
    frame().to_parquet(path)
  else:
    frame().to_csv(path, index=False, sep='\t' if request.param == 'tsv' else ';')
  return path


def test_a_table_of_numbers_and_texts(table):
  houses = load(f'file:{table}', target='price', columns='age,income,town,member')
  f = frame()
  order = np.random.Generator(np.random.PCG64(0)).permutation(NUM)
  train, test = order[:32], order[32:]
  assert houses.task == 'regression'
  assert houses.coding.features == ('age', 'income', 'town=Bonn', 'town=Köln', 'town=Ulm', 'member')
  numbers = f[['age', 'income', 'member']].to_numpy(float)
  scaled = (numbers - numbers[train].mean(0)) / numbers[train].std(0)
  for split, rows in ((houses.train, train), (houses.test, test)):
    np.testing.assert_allclose(split.x[:, [0, 1, 5]], scaled[rows], rtol=1e-5)
    one_hot = f['town'].to_numpy(object)[rows][:, None] == np.array(['Bonn', 'Köln', 'Ulm'])
    np.testing.assert_array_equal(split.x[:, 2:5], one_hot)
    np.testing.assert_allclose(
      houses.coding.decoded(split.y)[:, 0], f['price'].to_numpy()[rows], rtol=1e-5
    )
  # Rows that come later are coded as the training rows were.
  np.testing.assert_array_equal(houses.coding(f.iloc[test]), houses.test.x)


def test_targets_say_the_task(table):
  load = lambda **options: data.load(f'file:{table}', valid=0.0, **options)
  town = load(target='town', columns='age')
  assert (town.task, town.class_names) == ('classification', ('Bonn', 'Köln', 'Ulm'))
  assert town.coding.decoded(np.eye(3)).tolist() == ['Bonn', 'Köln', 'Ulm']
  assert load(target='member', columns='age').class_names == ('False', 'True')
  rooms = load(target='rooms', columns='age')
  assert (rooms.task, rooms.class_names) == ('classification', ('1', '2', '3', '4'))
  assert load(target='rooms', columns='age', task='regression').num_outputs == 1
  both = load(target=('price', 'rooms'), columns='age')
  assert (both.task, both.num_outputs, both.train.y.shape) == ('regression', 2, (32, 2))


def test_weights_and_splits_are_columns(table):
  houses = data.load(f'file:{table}', target='town', weight='weight', split='part')
  assert [len(getattr(houses, part)) for part in ('train', 'valid', 'test')] == [20, 10, 10]
  weights = frame()['weight'].to_numpy()[3::4]
  np.testing.assert_allclose(np.sort(houses.test.y.weight), np.sort(weights), rtol=1e-6)
  assert 'weight' not in ' '.join(houses.coding.features)
  assert houses.coding.features[-1] == 'rooms'


def test_arrays(tmp_path):
  rng = np.random.default_rng(0)
  path = tmp_path / 'a.npz'
  images = rng.integers(0, 256, (10, 4, 4, 1)).astype(np.uint8)
  np.savez(path, x_train=images[:8], y_train=np.arange(8) % 3, x_test=images[8:], y_test=[0, 1])
  loaded = load(f'file:{path}', target='y')
  order = np.random.Generator(np.random.PCG64(0)).permutation(10)
  order = order[order < 8]
  np.testing.assert_array_equal(loaded.train.x, (images[order] / 255.0).astype(np.float32))
  assert loaded.train.y.tolist() == (order % 3).tolist()
  tokens = rng.integers(0, 7, (10, 6))
  weight = (rng.random((10, 6)) < 0.8) * 1.0
  np.savez(path, x=tokens, y=np.roll(tokens, -1, 1), mask=weight)
  text = load(f'file:{path}', target='y', weight='mask')
  assert text.task == data.from_arrays(tokens, tokens).task == 'language'
  assert (text.num_outputs, text.train.y.weight.shape) == (7, (8, 6))
  np.savez(path, a=rng.random((10, 3)), b=rng.random(10), y=rng.random((10, 2)))
  loaded = load(f'file:{path}', target='y')
  assert loaded.coding.features == ('a[0]', 'a[1]', 'a[2]', 'b')
  assert loaded.train.y.shape == (8, 2)


def test_new_rows_are_finite(table):
  coding = load(f'file:{table}', target='price', columns='age,income').coding
  for value, told in ((np.inf, 'inf'), (-1e300, '-1e+300')):
    with pytest.raises(UserError) as caught:
      coding({'age': [30, 40], 'income': [1.0, value]})
    assert str(caught.value) == f"column 'income' is {told} in row 2: expected finite numbers"


def test_missing_values_are_dropped_or_filled(table):
  f = frame()
  f.loc[[3, 7, 20], 'age'] = np.nan
  f.loc[[7, 11], 'town'] = None
  f.to_parquet(table) if table.suffix == '.parquet' else f.to_csv(table, index=False)
  options = {'target': 'price', 'columns': 'age,town,income'}
  with pytest.raises(
    UserError, match=r"'age' has no .* in row 4, as in 2 other rows; nor has 'town'"
  ):
    load(f'file:{table}', **options)
  kept = f.dropna(subset=['age', 'town'])
  dropped = load(f'file:{table}', **options, missing='drop')
  assert len(dropped.train) + len(dropped.test) == len(kept) == NUM - 4
  prices = [dropped.coding.decoded(split.y)[:, 0] for split in (dropped.train, dropped.test)]
  np.testing.assert_allclose(np.sort(np.concatenate(prices)), np.sort(kept['price']), rtol=1e-5)

  filled = load(f'file:{table}', **options, missing='fill')
  order = np.random.Generator(np.random.PCG64(0)).permutation(NUM)
  train, test = order[:32], order[32:]
  marked = ('age', 'age missing', 'town=Bonn', 'town=Köln', 'town=Ulm', 'income')
  assert filled.coding.features == marked
  ages = f['age'].to_numpy(float)
  seen = ages[train][~np.isnan(ages[train])]
  x = filled.coding(f)
  np.testing.assert_allclose(
    x[:, 0], np.nan_to_num((ages - seen.mean()) / seen.std()), rtol=1e-5, atol=1e-6
  )
  assert np.flatnonzero(x[:, 1]).tolist() == [3, 7, 20]
  assert np.flatnonzero(x[:, 2:5].sum(1) == 0).tolist() == [7, 11]
  np.testing.assert_array_equal(filled.train.x, x[train])
  np.testing.assert_array_equal(filled.test.x, x[test])
  # A town that no row had is none of the categories; where nothing is filled it is refused.
  new = f.iloc[:1].assign(town='Rom')
  assert filled.coding(new)[0, 2:5].tolist() == [0.0, 0.0, 0.0]
  with pytest.raises(UserError, match="'Rom' in column 'town': expected one of"):
    dropped.coding(new)
  with pytest.raises(UserError, match="column 'age' has no value in row 4"):
    dropped.coding(f)


def test_missing_values_of_arrays(tmp_path):
  path, x = tmp_path / 'a.npz', np.arange(20.0).reshape(10, 2)
  x[4, 1] = np.nan
  np.savez(path, x=x, y=np.arange(10.0) * 1.5)
  with pytest.raises(UserError, match=r"'x' has no value \(.*\) in row 5: expected one in every"):
    load(f'file:{path}', target='y')
  assert len(load(f'file:{path}', target='y', missing='drop').train) == 7
  filled = load(f'file:{path}', target='y', missing='fill')
  assert filled.coding.features == ('x[0]', 'x[1]', 'x[0] missing', 'x[1] missing')
  np.testing.assert_array_equal(filled.coding({'x': x})[:, 2:], np.isnan(x))


def test_a_table_over_the_memory_limit(tmp_path):
  frame().to_csv(tmp_path / 'a.csv', index=False)
  whole, far = (
    load(f'file:{tmp_path / "a.csv"}', target='town', memory_limit=limit) for limit in (10**6, 10)
  )
  assert not far.train.in_memory
  for a, b in zip(whole.train[np.arange(5)], far.train[np.arange(5)]):
    np.testing.assert_array_equal(a, b)


def changed(column, row, value):
  f = frame().astype({column: object})
  f.loc[row, column] = value
  return f


@pytest.mark.parametrize(
  ('make', 'options', 'message'),
  [
    (frame, {}, "target '' of"),
    (frame, {'target': 'prise'}, "; did you mean 'price'?"),
    (frame, {'target': 'price,pat'}, "target 'price,pat': "),
    (frame, {'target': 'price', 'columns': 'aeg'}, "columns 'aeg': not in"),
    (frame, {'target': 'price', 'weight': 'w'}, "weight 'w': not in"),
    (frame, {'target': 'price', 'split': 'town'}, "'Köln' in row 1 of split 'town': expected one"),
    (frame, {'target': 'town', 'task': 'regression'}, "target 'town' of texts in a regression"),
    (frame, {'target': 'town', 'task': 'clasification'}, "task 'clasification' of"),
    (lambda: changed('age', 6, None), {'target': 'price'}, "'age' has no value"),
    (
      lambda: changed('price', 6, None),
      {'target': 'price', 'missing': 'fill'},
      "'price' has no va",
    ),
    (
      lambda: frame().assign(age=np.nan),
      {'target': 'price', 'missing': 'drop'},
      '40 of 40 rows la',
    ),
    (
      lambda: frame().assign(age=np.nan),
      {'target': 'price', 'missing': 'fill'},
      "'age' has no value in any",
    ),
    (frame, {'target': 'price', 'missing': 'skip'}, "missing 'skip' of"),
    (
      lambda: changed('age', 6, 'old'),
      {'target': 'price'},
      "'age' is 'old' in row 7: exp",
    ),
    (lambda: changed('income', 6, 'inf'), {'target': 'price'}, "'income' is inf in row 7"),
    (
      lambda: changed('weight', 6, -1.0),
      {'target': 'price', 'weight': 'weight'},
      "'weight' is -1.0 in row 7",
    ),
    (lambda: frame().assign(price=3.0), {'target': 'price', 'task': 'regression'}, '3.0 in all 32'),
    (lambda: frame().assign(price=3.0), {'target': 'price'}, "'price' is 3.0 in all 40 rows"),
    (lambda: frame().iloc[:0], {'target': 'price'}, 'the table has no rows; expected at least 2'),
    (lambda: frame().iloc[:1], {'target': 'price'}, 'has 1 rows: expected at least 2'),
    (
      lambda: (
        frame()
        .assign(town=[f't{i}' for i in range(NUM)] * 1)
        .loc[[*range(NUM)] * 3]
        .assign(town=[f't{i}' for i in range(3 * NUM)])
      ),
      {'target': 'price'},
      "column 'town' has 120 different texts, such as 't0': expected numbers, or at most 100",
    ),
    (lambda: frame().assign(part='train'), {'target': 'price', 'split': 'part'}, "rows of 'test'"),
    (
      lambda: frame().set_axis([*map(str, range(8))], axis=1),
      {'target': 'a'},
      'the names of',
    ),
  ],
)
def test_bad_tables(tmp_path, make, options, message):
  path = tmp_path / 'a.csv'
  make().to_csv(path, index=False)
  with pytest.raises(UserError, match=re.escape(message)) as caught:
    load(f'file:{path}', **options)
  assert '\n' not in str(caught.value)
  assert 'a.csv' in str(caught.value)


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('a.csv', b'', 'the file is empty'),
    ('a.csv', b'a,b\n1,2\n1,2,3\n', 'no sound table'),
    ('a.csv', b'a,b\n\xff\xfe\xfa,2\n', 'no sound table'),
    ('a.csv.gz', b'a,b\n', 'no sound table'),
    ('a.parquet', b'PAR1', 'no sound Parquet file'),
    ('a.npz', b'PK', 'no sound NPZ file'),
    ('a.xlsx', b'PK', 'expected a name that ends in .csv'),
  ],
)
def test_damaged_files(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=re.escape(message)) as caught:
    load(f'file:{tmp_path / name}', target='a')
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('prices', 'message'),
  [
    (
      [f'1,0{i:02}.50' for i in range(40)],
      "target 'a' has texts such as '1,000.50': expected",
    ),
    ([f'no {i}' for i in range(40)], "target 'a' has 40 different texts in 40 rows: expected some"),
  ],
)
def test_texts_that_are_no_classes(tmp_path, prices, message):
  lines = ['a;b', *(f'{price};{i}' for i, price in enumerate(prices))]
  (tmp_path / 'prices.csv').write_text('\n'.join(lines))
  with pytest.raises(UserError, match=re.escape(message)):
    load(f'file:{tmp_path / "prices.csv"}', target='a')


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({'x': np.zeros((3, 2)), 'y': np.zeros(4)}, 'x [3, 2], y [4]: expected arrays of as many rows'),
    ({'x': np.array([{}, None]), 'y': np.zeros(2)}, 'no sound NPZ file of plain arrays'),
    ({'x': np.zeros((3, 2, 2)), 'z': np.ones(3), 'y': np.arange(3)}, 'expected it alone'),
    ({'x_train': np.zeros((3, 2)), 'y_train': np.arange(3), 'x_test': np.ones((3, 2))}, 'each arr'),
  ],
)
def test_bad_arrays(tmp_path, arrays, message):
  np.savez(tmp_path / 'a.npz', **arrays)
  with pytest.raises(UserError, match=re.escape(message)):
    load(f'file:{tmp_path / "a.npz"}', target='y')


def save(path, value, mode='RGB', size=(6, 6)):
  path.parent.mkdir(parents=True, exist_ok=True)
  channels = {'RGB': (3,), 'L': (), 'I;16': ()}[mode]
  kind = np.uint16 if mode == 'I;16' else np.uint8
  Image.fromarray(np.full((*size, *channels), value, kind)).save(path)


@pytest.fixture
def folder(tmp_path):
  for label, name in enumerate(['cat', 'ant', 'bee']):
    for i in range(5):
      save(tmp_path / name / f'{i}.png', 50 * label + i)
  (tmp_path / 'ant' / 'notes.txt').write_text('none')
  return tmp_path


@pytest.mark.parametrize('limit', [10**9, 10])
def test_a_folder_of_images(folder, limit):
  loaded = load(f'images:{folder}', memory_limit=limit)
  assert loaded.class_names == ('ant', 'bee', 'cat')
  assert (len(loaded.train), len(loaded.test)) == (12, 3)
  assert loaded.train.in_memory == (limit > 10)
  seen = []
  for split in (loaded.train, loaded.test):
    x, y = split[np.arange(len(split))]
    assert (x.shape[1:], x.dtype) == ((6, 6, 3), np.float32)
    assert (x == x[:, :1, :1, :1]).all()
    values = np.rint(x[:, 0, 0, 0] * 255).astype(int)
    assert (np.array([2, 0, 1])[values // 50] == y).all()
    seen += values.tolist()
  assert sorted(seen) == [50 * label + i for label in range(3) for i in range(5)]


def test_folders_of_splits_sizes_and_channels(tmp_path):
  for part, count in (('train', 4), ('val', 2), ('test', 3)):
    for name in 'ab':
      for i in range(count):
        save(tmp_path / part / name / f'{i}.png', 100, 'L', size=(4 + i, 8))
  loaded = data.load(f'images:{tmp_path}', image_size=5)
  assert [len(split) for split in (loaded.train, loaded.valid, loaded.test)] == [8, 4, 6]
  assert loaded.example_shape == (5, 5, 1)
  assert load(f'images:{tmp_path}', image_size=5, channels=3).example_shape == (5, 5, 3)
  with pytest.raises(UserError, match=r'0\.png. is 4×8 and others|expected one size'):
    load(f'images:{tmp_path}')


def test_images_of_16_bits(tmp_path):
  for name in 'ab':
    for i in range(2):
      save(tmp_path / name / f'{i}.png', 257 * 100, 'I;16')
  assert np.allclose(load(f'images:{tmp_path}').train.x, 100 / 255)


@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (lambda root: (root / 'bee' / '2.png').write_bytes(b'nothing'), "bee/2.png' (cannot identify"),
    (lambda root: (root / 'dog').mkdir(), "dog': expected some, .png, .jpg"),
    (lambda root: save(root / 'train' / 'x' / '1.png', 1), "only the class 'x': expected a folder"),
  ],
)
def test_bad_folders(folder, spoil, message):
  spoil(folder)
  with pytest.raises(UserError, match=re.escape(message)) as caught:
    load(f'images:{folder}')
  assert '\n' not in str(caught.value)


def test_folders_that_are_not_there(tmp_path):
  for name, message in (('none', 'does not exist; expected a folder'), ('', 'no folder in')):
    with pytest.raises(UserError, match=message):
      load(f'images:{tmp_path / name}')
  for part, name in (('train', 'a'), ('train', 'b'), ('test', 'c')):
    save(tmp_path / part / name / '1.png', 1)
  with pytest.raises(UserError, match=r"class 'c' in .*test': expected one of train, a, b"):
    load(f'images:{tmp_path}')


def test_a_truncated_image_is_named_when_it_is_read(folder):
  (folder / 'cat' / '1.png').write_bytes((folder / 'cat' / '1.png').read_bytes()[:-30])
  loaded = load(f'images:{folder}', memory_limit=10)
  with pytest.raises(UserError, match=re.escape("cat/1.png' (")):
    [split[np.arange(len(split))] for split in (loaded.train, loaded.test)]


@pytest.mark.parametrize('kind', ['table', 'images'])
def test_own_data_is_swept(kind, tmp_path, request):
  """From the config to a ranked table, with the options' full names in messages."""
  if kind == 'table':
    frame().to_csv(tmp_path / 'a.csv', index=False)
    options = {'data.name': f'file:{tmp_path / "a.csv"}', 'data.target': 'price,age'}
  else:
    request.getfixturevalue('folder')
    options = {'data.name': f'images:{tmp_path}', 'data.image_size': 4, 'train.batch_size': 4}
  options |= {'num_seeds': 1, 'sweep.modes': ('shared',)}
  result = STUDIES['sweep'].run(tiny.config('sweep', options), tmp_path / 'run', devices=1)
  assert len(result.table) == 8
  if kind == 'table':
    wrong = options | {'data.target': 'prise'}
    with pytest.raises(UserError, match=r"^config\.data\.target 'prise': not in file:"):
      STUDIES['sweep'].run(tiny.config('sweep', wrong), tmp_path / 'other', devices=1)
    assert not (tmp_path / 'other').exists()


def test_tokens_that_do_not_count_in_a_file(tmp_path):
  x = np.arange(48).reshape(8, 6) % 5
  y = np.where(x == 4, -100, x)
  np.savez(tmp_path / 'a.npz', x=x, y=y)
  options = {'name': f'file:{tmp_path / "a.npz"}', 'target': 'y', 'task': 'language'}
  with pytest.raises(UserError, match='where -100 means no label: ignore_label of the task'):
    load_data(DataOptions(**options))
  loaded = load_data(DataOptions(**options), '-100')
  assert (loaded.num_outputs, loaded.ignore_label) == (5, -100)
  task = make_task(Options(task=TaskOptions(ignore_label='-100')), loaded)
  assert task == Task('language', ignore_label=-100)
