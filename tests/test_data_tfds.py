"""TensorFlow Datasets: sets really prepared as ArrayRecord here, read back without TensorFlow."""

import contextlib
import functools
import http.server
import pathlib
import re
import shlex
import shutil
import socket
import sys
import threading
import time

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from additive_jax import data
from additive_jax.data import tfds_prepare
from additive_jax.errors import UserError

# Each source as it stands, nothing held out of its training part.
load = functools.partial(data.load, valid=0.0)

# tfds 4.9.10 reads descriptors in a way that protobuf is about to drop.
pytestmark = pytest.mark.filterwarnings(r'ignore:label\(\) is deprecated:DeprecationWarning')

CLASSES = tfds.features.ClassLabel(names=('circle', 'square', 'star'))
PICTURE = tfds.features.Image(shape=(4, 5, 3))


def picture(grey: int, height: int = 4) -> PIL.Image.Image:
  return PIL.Image.fromarray(np.full((height, 5, 3), grey, np.uint8))


def pictures(first: int, count: int) -> list[dict]:
  return [{'image': picture(first + i), 'label': i % 3} for i in range(count)]


def define(name, features, keys, splits, urls=()):
  """Registers a set whose examples are given, or, where `urls` are, lie in the file they give."""

  def info(self):
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=keys
    )

  def split_generators(self, dl_manager):
    if not urls:
      return {split: self._generate_examples(examples) for split, examples in splits.items()}
    greys = pathlib.Path(dl_manager.download(urls[0])).read_bytes()
    return {split: self._generate_examples(pictures(greys[0], 6)) for split in ('train', 'test')}

  def generate_examples(self, examples):
    yield from enumerate(examples)

  body = {
    'VERSION': tfds.core.Version('1.0.0'),
    '__module__': __name__,
    'url_infos': dict.fromkeys(urls),
    '_info': info,
    '_split_generators': split_generators,
    '_generate_examples': generate_examples,
  }
  return type(name, (tfds.core.GeneratorBasedBuilder,), body)


LABELLED = {'image': PICTURE, 'label': CLASSES}
define(
  'AdditivePictures',
  LABELLED,
  ('image', 'label'),
  {'train': pictures(0, 25), 'test': pictures(100, 7)},
)
define(
  'AdditiveThree',
  LABELLED,
  ('image', 'label'),
  {'train': pictures(0, 12), 'validation': pictures(50, 3), 'test': pictures(100, 4)},
)
define('AdditiveUnprepared', LABELLED, ('image', 'label'), {'train': pictures(0, 3)})
define(
  'AdditiveWithheld',
  LABELLED,
  None,
  {
    'train': pictures(0, 4),
    'validation': pictures(50, 3),
    'test': [{'image': picture(100), 'label': -1}],
  },
)
define(
  'AdditiveRows',
  {'row': tfds.features.Tensor(shape=(3,), dtype=np.float32), 'label': CLASSES},
  ('row', 'label'),
  {'train': [{'row': np.full(3, i, np.float32), 'label': i % 3} for i in range(20)]},
)
define(
  'AdditiveTexts',
  {'text': tfds.features.Text(), 'label': CLASSES},
  ('text', 'label'),
  {
    'train': [{'text': f'train number {i}', 'label': 0} for i in range(30)],
    'test': [{'text': f'a test with ü {i}', 'label': 0} for i in range(9)],
  },
)
define(
  'AdditiveSizes',
  {'image': tfds.features.Image(shape=(None, None, 3)), 'label': CLASSES},
  ('image', 'label'),
  {'train': [{'image': picture(i, height=4 + i), 'label': 0} for i in range(20)]},
)
define(
  'AdditivePairs',
  {'german': tfds.features.Text(), 'french': tfds.features.Text()},
  None,
  {'train': [{'german': 'zwei', 'french': 'deux'}]},
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A data_dir with every set above but one, prepared as tfds itself prepares them."""
  root = tmp_path_factory.mktemp('tfds')
  for name in ('pictures', 'three', 'withheld', 'rows', 'texts', 'sizes', 'pairs'):
    builder = tfds.builder(f'additive_{name}', data_dir=root, file_format='array_record')
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
  return str(root)


def whole(split: data.Split) -> tuple[np.ndarray, np.ndarray]:
  return split[np.arange(len(split))]


def error_of(spec: str, **options) -> str:
  with pytest.raises(UserError) as caught:
    load(spec, **options)
  message = str(caught.value)
  assert '\n' not in message
  assert spec in message
  return message


@pytest.mark.parametrize('memory_limit', [10**6, 100])
@pytest.mark.parametrize('name', ['additive_pictures', 'additive_pictures:1.*.*'])
def test_images_with_classes(folder, name, memory_limit):
  loaded = load(f'tfds:{name}', data_dir=folder, memory_limit=memory_limit)
  assert loaded.task == 'classification'
  assert loaded.train.in_memory == (memory_limit > 100)
  assert (len(loaded.train), len(loaded.test)) == (25, 7)
  assert loaded.example_shape == (4, 5, 3)
  assert (loaded.num_outputs, loaded.class_names) == (3, ('circle', 'square', 'star'))
  for split, first in ((loaded.train, 0), (loaded.test, 100)):
    x, y = whole(split)
    assert x.dtype == np.float32
    assert y.dtype == np.int32
    # tfds shuffles what it writes; the grey says which picture it is, and so its class.
    greys = np.rint(x[:, 0, 0, 0] * 255).astype(int)
    # One rounding to float32 of values up to 1.
    np.testing.assert_allclose(
      x, np.broadcast_to(greys[:, None, None, None] / 255, x.shape), atol=1e-7
    )
    assert sorted(greys) == list(range(first, first + len(split)))
    np.testing.assert_array_equal(y, (greys - first) % 3)
    np.testing.assert_array_equal(split[np.array([3, 0])][0], x[[3, 0]])


def test_validation_is_there_to_choose_by(folder):
  sizes = lambda loaded: {name: len(split) for name, split in loaded.splits.items()}
  three = data.load('tfds:additive_three', data_dir=folder)
  assert sizes(three) == {'train': 12, 'valid': 3, 'test': 4}
  assert sizes(load('tfds:additive_three', data_dir=folder)) == {'train': 12, 'test': 4}
  share = data.load('tfds:additive_three', data_dir=folder, valid=0.5)
  assert sizes(share) == {'train': 6, 'valid': 6, 'test': 4}
  cut = data.load('tfds:additive_pictures', data_dir=folder)
  assert sizes(cut) == {'train': 20, 'valid': 5, 'test': 7}


def test_a_test_split_with_withheld_labels_gives_way_to_validation(folder):
  loaded = load('tfds:additive_withheld', data_dir=folder)
  assert (len(loaded.train), len(loaded.test)) == (4, 3)
  assert whole(loaded.test)[1].min() >= 0


def test_rows_without_a_test_split_hold_out_a_tenth_of_train(folder):
  loaded = load('tfds:additive_rows', data_dir=folder)
  assert (len(loaded.train), len(loaded.test)) == (18, 2)
  rows = np.concatenate([whole(split)[0] for split in (loaded.train, loaded.test)])
  # Tensors are taken as they are, and no row is in both splits.
  assert sorted(rows[:, 0]) == list(range(20))


@pytest.mark.parametrize('memory_limit', [10**6, 100])
def test_text_is_documents_joined_by_newlines(folder, memory_limit):
  loaded = load(
    'tfds:additive_texts', data_dir=folder, sequence_length=10, memory_limit=memory_limit
  )
  assert (loaded.task, loaded.num_outputs) == ('language', 256)
  assert loaded.train.in_memory == (memory_limit > 100)
  for split, documents in (
    (loaded.train, [f'train number {i}' for i in range(30)]),
    (loaded.test, [f'a test with ü {i}' for i in range(9)]),
  ):
    x, y = whole(split)
    text = np.append(x.ravel(), y[-1, -1]).tobytes()
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    found = text.split(b'\n')
    # The last bytes are no whole window, so the last documents may be cut off.
    assert len(found) >= len(documents) - 1
    assert {document.decode() for document in found[:-1]} <= set(documents)


def test_tensorflow_is_never_imported(folder):
  load('tfds:additive_pictures', data_dir=folder)
  assert 'tensorflow' not in sys.modules


def test_images_of_several_sizes(folder):
  message = error_of('tfds:additive_sizes', data_dir=folder)
  assert re.search(r'image of shape \(\d+, 5, 3\) and \(\d+, 5, 3\); expected one shape', message)


def test_features_that_fit_no_task(folder):
  message = error_of('tfds:additive_pairs', data_dir=folder)
  assert 'french (Text), german (Text)' in message


def test_unknown_names(tmp_path):
  assert "did you mean 'mnist'?" in error_of('tfds:mnsit', data_dir=tmp_path)
  for name in ('a b', 'huggingface:mnist', 'mnist/config:1.0.0/split=3'):
    assert 'expected tfds:NAME[/CONFIG][:VERSION]' in error_of(f'tfds:{name}', data_dir=tmp_path)


def test_an_unprepared_set_answers_at_once_with_the_command_that_prepares_it(tmp_path):
  # The quotes and the space show that the command is quoted for a shell.
  data_dir = str(tmp_path / "it's here")
  start = time.monotonic()
  message = error_of('tfds:additive_unprepared', data_dir=data_dir)
  assert time.monotonic() - start < 1
  assert 'is not prepared in' in message
  program, flag, code = shlex.split(message.split(' run: ')[1])
  assert (program, flag) == ('python', '-c')
  exec(code, {})
  assert len(load('tfds:additive_unprepared', data_dir=data_dir, valid=0.0).train) == 2


def test_a_stock_set_that_is_not_prepared_answers_within_a_second(tmp_path):
  start = time.monotonic()
  assert 'not prepared' in error_of('tfds:mnist', data_dir=tmp_path)
  assert time.monotonic() - start < 1


@pytest.mark.parametrize(
  ('name', 'content'),
  [
    ('dataset_info.json', None),
    ('dataset_info.json', b'{"name": '),
    ('features.json', b'{"name": '),
    ('additive_pictures-train.array_record-00000-of-00001', None),
    ('additive_pictures-train.array_record-00000-of-00001', b'short'),
  ],
)
def test_a_damaged_set(folder, tmp_path, name, content):
  shutil.copytree(folder, tmp_path / 'copy')
  path = tmp_path / 'copy' / 'additive_pictures' / '1.0.0' / name
  path.unlink()
  if content is not None:
    path.write_bytes(content)
  assert 'cannot be read' in error_of('tfds:additive_pictures', data_dir=tmp_path / 'copy')


def test_a_strangers_set_imports_no_module(folder, tmp_path, monkeypatch):
  (tmp_path / 'evil.py').write_text(f'open({str(tmp_path / "ran")!r}, "w")\n')
  monkeypatch.syspath_prepend(tmp_path)
  shutil.copytree(folder, tmp_path / 'copy')
  path = tmp_path / 'copy' / 'additive_pictures' / '1.0.0' / 'features.json'
  kind = 'tensorflow_datasets.core.features.class_label_feature.ClassLabel'
  assert kind in path.read_text()
  path.write_text(path.read_text().replace(kind, 'evil.ClassLabel'))
  message = error_of('tfds:additive_pictures', data_dir=tmp_path / 'copy')
  assert "names 'evil.ClassLabel'; expected features of tensorflow_datasets" in message
  assert not (tmp_path / 'ran').exists()


def test_a_set_in_another_format_names_a_folder_for_array_record(folder, tmp_path):
  shutil.copytree(folder, tmp_path / 'copy')
  path = tmp_path / 'copy' / 'additive_pictures' / '1.0.0' / 'dataset_info.json'
  path.write_text(path.read_text().replace('array_record', 'tfrecord'))
  message = error_of('tfds:additive_pictures', data_dir=str(tmp_path / 'copy'))
  assert 'as tfrecord; expected array_record' in message
  assert f'data_dir="{tmp_path}/copy/array_record"' in message


def test_a_version_that_is_not_there(folder):
  assert '1.0.0' in error_of('tfds:additive_pictures:2.0.0', data_dir=folder, download=True)


@contextlib.contextmanager
def web_server(folder):
  handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  try:
    yield f'http://127.0.0.1:{server.server_port}'
  finally:
    server.shutdown()
    thread.join()
    server.server_close()


def test_download_fetches_and_prepares(tmp_path, capsys):
  (tmp_path / 'greys.bin').write_bytes(bytes([40]))
  with web_server(tmp_path) as address:
    define('AdditiveFetched', LABELLED, ('image', 'label'), None, [f'{address}/greys.bin'])
    loaded = load('tfds:additive_fetched', data_dir=tmp_path / 'sets', download=True)
  assert sorted(np.rint(whole(loaded.test)[0][:, 0, 0, 0] * 255)) == list(range(40, 46))
  assert capsys.readouterr().out == ''
  # Prepared now, so it is read without any server.
  again = load('tfds:additive_fetched', data_dir=tmp_path / 'sets')
  np.testing.assert_array_equal(whole(again.train)[0], whole(loaded.train)[0])


def test_without_a_network_download_ends_soon_with_the_command(tmp_path):
  with socket.create_server(('127.0.0.1', 0)) as closed:
    url = f'http://127.0.0.1:{closed.getsockname()[1]}/x'
  define('AdditiveUnreachable', LABELLED, ('image', 'label'), None, [url])
  start = time.monotonic()
  message = error_of('tfds:additive_unreachable', data_dir=tmp_path, download=True)
  assert time.monotonic() - start < 2
  assert f'no answer from {url}' in message
  assert 'run: python -c ' in message
  assert not list(tmp_path.rglob('*.json'))


def test_answers(tmp_path):
  with web_server(tmp_path) as address:
    # A page that isn't there is an answer too.
    assert tfds_prepare.answers(f'{address}/nothing')
  with socket.create_server(('127.0.0.1', 0)) as silent:
    url = f'http://127.0.0.1:{silent.getsockname()[1]}'
    start = time.monotonic()
    assert not tfds_prepare.answers(url, seconds=0.3)
    assert time.monotonic() - start < 1


def test_a_package_that_preparing_needs_is_named(tmp_path, monkeypatch):
  builder = define('AdditiveNeedy', LABELLED, ('image', 'label'), {'train': pictures(0, 3)})

  def split_generators(self, dl_manager):
    import package_that_is_not_installed

    return package_that_is_not_installed

  monkeypatch.setattr(builder, '_split_generators', split_generators)
  message = error_of('tfds:additive_needy', data_dir=tmp_path, download=True)
  assert "'package_that_is_not_installed'" in message
