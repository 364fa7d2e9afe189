"""The network of a config: every name on data that fits, and one line where it cannot be."""

import sys

import jax
import numpy as np
import pytest
import tiny

from additive_jax import UserError, data, launch, models
from additive_jax.experiments.network import NETWORKS, check_fits, make_model
from additive_jax.experiments.options import read_options
from additive_jax.models.additive import gate_names
from additive_jax.run.tasks import Task

OPTIONS = {
  'model.num_blocks': 2,
  'model.width': 8,
  'model.hidden': (12,),
  'model.num_heads': 4,
  'model.channels': (4, 6),
  'model.blocks_per_stage': 1,
  'model.num_chunks': 3,
}
RESIDUAL, JOINS, LANE = 'residual', 'sub_activation', 'lane'
ALL = (RESIDUAL, JOINS, LANE)


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
  """Images, a table and text, by what they are."""
  path = tmp_path_factory.mktemp('text') / 'lines.txt'
  path.write_text('A line of plain text.\n' * 20)
  return {
    'images': data.load('digits', valid=0.0),
    'a table': data.load('tabular:iris', valid=0.0),
    'text': data.load(f'text:{path}', sequence_length=9, valid=0.0),
  }


def options(**changed):
  changed = {f'model.{key}': value for key, value in changed.items()}
  return read_options(tiny.config('sweep', {**OPTIONS, **changed})).model


# name, data, kinds of gates, class, gates
FITTING = [
  ('mlp', 'images', ALL, models.MLP, 2 * 4),
  ('mlp', 'a table', (JOINS,), models.MLP, 2 * 2),
  ('transformer', 'images', ALL, models.Transformer, 2 * (2 + 4)),
  ('transformer', 'text', ALL, models.Transformer, 2 * (2 + 4)),
  ('transformer', 'text', (RESIDUAL,), models.Transformer, 2 * 2),
  ('convnet', 'images', (RESIDUAL, JOINS), models.ConvNet, 2 * 3),
  ('lenet', 'images', (JOINS,), models.LeNet, None),
  ('vgg', 'images', (JOINS,), models.VGG, None),
  ('dense_stack', 'images', (JOINS,), models.DenseStack, None),
  ('dense_stack', 'a table', (JOINS,), models.DenseStack, None),
]


def test_every_name_is_there():
  assert {name for name, *_ in FITTING} == set(NETWORKS)


@pytest.mark.parametrize(('name', 'kind', 'kinds', 'made', 'num_gates'), FITTING)
def test_models_that_fit_their_data(sets, name, kind, kinds, made, num_gates):
  found = sets[kind]
  model = make_model(options(name=name, gates=kinds), found)
  assert type(model) is made
  assert model.gates == kinds
  names = gate_names(model)
  assert len(set(names)) == len(names) == (num_gates or len(names)) > 0
  ends = {RESIDUAL: '/residual', JOINS: ('/join_1', '/join_2'), LANE: '/lane'}
  assert all(any(gate.endswith(ends[kind]) for gate in names) for kind in kinds)
  x, y = found.train[np.arange(4)]
  logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
  assert logits.shape == (*y.shape, found.num_outputs)


def test_every_option_reaches_its_model(sets):
  images, text = sets['images'], sets['text']
  found = make_model(options(name='mlp', gates=(LANE,), hidden=(4, 8), num_lanes=4), images)
  assert found == models.MLP(2, 8, (4, 8), 10, (LANE,), num_chunks=3, num_lanes=4)
  found = make_model(
    options(name='transformer', gates=(LANE,), patch_size=4, unit='swiglu', num_lanes=4), images
  )
  assert found == models.Transformer(
    2,
    8,
    4,
    12,
    10,
    patch_size=4,
    max_tokens=4,
    unit='swiglu',
    gates=(LANE,),
    num_chunks=3,
    num_lanes=4,
  )
  found = make_model(options(name='transformer', positions='rope'), text)
  assert found == models.Transformer(
    2, 8, 4, 12, 256, num_tokens=256, causal=True, positions='rope', max_tokens=9, num_chunks=3
  )
  found = make_model(options(name='convnet', gates=(JOINS,), num_chunks=2), images)
  assert found == models.ConvNet((4, 6), 1, num_classes=10, gates=(JOINS,), num_chunks=2)
  found = make_model(options(name='vgg', gates=(JOINS,)), images)
  assert found == models.VGG((4, 6), num_classes=10, num_chunks=3)
  found = make_model(options(name='lenet', gates=(JOINS,), num_chunks=2), images)
  assert found == models.LeNet(10, num_chunks=2)


def test_a_network_of_your_own(sets):
  chosen = options(name='additive_jax.models:MLP')
  chosen.kwargs.update({'num_blocks': 3, 'width': 4, 'hidden': 5})
  assert make_model(chosen, sets['a table']) == models.MLP(3, 4, 5, 3)


@pytest.mark.parametrize(
  ('kind', 'changed', 'message'),
  [
    (
      'images',
      {'name': 'transfomer'},
      "config.model.name 'transfomer': expected one of mlp, dense_stack, transformer, convnet, "
      "lenet, vgg, or module:Class; did you mean 'transformer'?",
    ),
    (
      'images',
      {'name': 'xyz'},
      "config.model.name 'xyz': expected one of mlp, dense_stack, transformer, convnet, lenet, "
      'vgg, or module:Class',
    ),
    ('a table', {'name': 'transformer'}, 'tabular:iris, a table: expected images or text'),
    ('a table', {'name': 'convnet'}, 'model convnet on tabular:iris, a table: expected images'),
    ('a table', {'name': 'lenet'}, 'model lenet on tabular:iris, a table: expected images'),
    ('text', {'name': 'vgg'}, 'lines.txt, text: expected images'),
    ('text', {'name': 'mlp'}, 'lines.txt, text: expected images or a table'),
    (
      'images',
      {'gates': ('residul',)},
      "config.model.gates ('residul',): expected some of ",
    ),
    (
      'images',
      {'name': 'convnet', 'gates': (LANE,)},
      "gate kind 'lane' for convnet: expected some",
    ),
    (
      'images',
      {'name': 'lenet'},
      "gate kind 'residual' for lenet: expected some of sub_activation",
    ),
    ('images', {'name': 'vgg', 'gates': ALL}, "gate kind 'residual' for vgg: expected some of"),
    ('images', {'gates': (LANE, LANE)}, "config.model.gates ('lane', 'lane'): expected some of"),
    ('images', {'gates': ()}, 'config.model.gates (): expected some of'),
    ('images', {'hidden': (4, 4, 4)}, 'hidden (4, 4, 4) has 3 sizes: expected 1 or 2'),
    ('images', {'hidden': ()}, 'hidden () has 0 sizes: expected 1 or 2'),
    ('images', {'width': 0}, 'width 0: expected 1 to 1,000,000'),
    ('images', {'num_blocks': 0}, 'num_blocks 0: expected 1 to 1,000'),
    ('images', {'gates': (JOINS,), 'num_chunks': 9}, '9 chunks of a width of 8: expected 1 to 8'),
    (
      'images',
      {'gates': (JOINS,), 'num_chunks': 1},
      'num_chunks 1 with sub_activation gates: expected at least 2',
    ),
    ('images', {'gates': (LANE,), 'num_lanes': 5}, '12 hidden units over 5 lanes: expected a mul'),
    (
      'images',
      {'name': 'transformer', 'hidden': (4, 4, 4)},
      'hidden (4, 4, 4) has 3 sizes: expected 1 or 2',
    ),
    ('images', {'name': 'transformer', 'hidden': ()}, 'hidden () has 0 sizes: expected 1 or 2'),
    ('images', {'name': 'transformer', 'patch_size': 0}, 'patch_size 0: expected 1 to 10,000'),
    ('text', {'name': 'transformer', 'num_heads': 3}, '8 units of width over 3 heads: expected a'),
    (
      'text',
      {'name': 'transformer', 'num_heads': 8, 'positions': 'rope'},
      'expected a multiple of 2',
    ),
    (
      'text',
      {'name': 'transformer', 'unit': 'silu'},
      "unit 'silu': expected one of gelu, relu, swiglu",
    ),
    (
      'text',
      {'name': 'transformer', 'positions': ''},
      "positions '': expected one of learned, rope",
    ),
    (
      'text',
      {'name': 'transformer', 'gates': (LANE,), 'num_lanes': 3},
      '4 heads over 3 lanes: expected a multiple of 3',
    ),
    (
      'images',
      {'name': 'convnet', 'channels': ()},
      'channels (): expected a number for each stage',
    ),
    (
      'images',
      {'name': 'convnet', 'channels': (4, 0)},
      'config.model.channels (4, 0): expected sizes of 1 to ',
    ),
    (
      'images',
      {'name': 'convnet', 'gates': (JOINS,), 'num_chunks': 5},
      '5 chunks of a width of 4: expected 1 to 4',
    ),
    ('images', {'name': 'vgg', 'gates': (JOINS,), 'num_chunks': 5}, '5 chunks of a width of 4'),
    ('images', {'name': 'lenet', 'gates': (JOINS,), 'num_chunks': 7}, '7 chunks of a width of 6'),
    (
      'images',
      {'name': 'nowhere:Net'},
      "config.model.name 'nowhere:Net': No module named 'nowhere'",
    ),
    ('images', {'name': 'additive_jax.models:MLP'}, "'additive_jax.models:MLP' with {}: "),
    ('images', {'name': 'math:sqrt'}, 'expected an additive module that takes num_classes'),
  ],
)
def test_what_cannot_be(sets, kind, changed, message):
  with pytest.raises(UserError) as error:
    make_model(options(**changed), sets[kind])
  assert message in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', NETWORKS)
def test_kwargs_are_for_networks_of_your_own(sets, name):
  chosen = options(name=name, kwargs={'depth': 3})
  with pytest.raises(UserError) as error:
    make_model(chosen, sets['images'])
  assert str(error.value) == f"config.model.kwargs {{'depth': 3}} for {name}: expected none"


OWN = """
import sys

import flax.linen as nn
import jax.numpy as jnp

from additive_jax import Additive


class Sound(Additive):
  num_classes: int
  last: object = None

  def setup(self):
    self.stem, self.head = nn.Dense(4), nn.Dense(self.num_classes)
    self.sites = [nn.Dense(4, name='first'), self.last or Branch(name='second')]

  def embed(self, x):
    return self.stem(x.reshape(len(x), -1))

  def readout(self, h):
    return self.head(h)


class Branch(nn.Module):
  change: object = jnp.tanh

  @nn.compact
  def __call__(self, h):
    return self.change(nn.Dense(4)(h))


def site(change):
  return lambda num_classes: Sound(num_classes, Branch(change))


def leave(h):
  sys.exit(3)


raises = site(lambda h: 1 / 0)
exits = site(leave)
mixes = site(lambda h: h - h.mean(0))
nan = site(lambda h: h / jnp.zeros_like(h))
pair = site(lambda h: (h, h))
narrow = site(lambda h: h[:, :3])
dropout = lambda num_classes: Sound(num_classes, nn.Dropout(0.5, deterministic=False))
batch_norm = lambda num_classes: Sound(num_classes, nn.BatchNorm(use_running_average=False))
few_classes = lambda num_classes: Sound(2)
no_module = lambda num_classes: 3
fails = lambda num_classes: {}['width']
stops = lambda num_classes: sys.exit(4)


class Flat(Sound):
  def readout(self, h):
    return self.head(h)[:, None]


class NoEmbed(Additive):
  num_classes: int

  def setup(self):
    self.sites, self.readout = [nn.Dense(4)], nn.Dense(self.num_classes)
"""
MODULES = {
  'own_syntax': 'def',
  'own_raises': 'raise RuntimeError("not\\ntoday")',
  'own_exits': 'import sys; sys.exit(5)',
  'own_networks': OWN,
}


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('own_missing:Net', 'No module named'),
    ('own_syntax:Net', 'SyntaxError: invalid syntax'),
    ('own_raises:Net', 'RuntimeError: not today; expected MODULE:CLASS that Python can import'),
    ('own_exits:Net', 'it ends the program (sys.exit, 5); expected MODULE:CLASS that Python can'),
    ('own_networks:Net', "has no attribute 'Net'"),
    ('own_networks:no_module', 'model 3: expected an instance of an additive module'),
    ('own_networks:fails', 'KeyError: width; expected an additive module that takes num_classes'),
    ('own_networks:stops', 'it ends the program (sys.exit, 4)'),
    ('own_networks:NoEmbed', 'expected embed, from inputs to the stream'),
    ('own_networks:Flat', 'The loss cannot judge outputs of shape (2, 1, 3) by targets'),
    ('own_networks:few_classes', 'but readout gives 2 outputs: expected targets from 0 to 1'),
    ('own_networks:raises', "Sound: Site 'last' fails on a batch of 2: ZeroDivisionError"),
    ('own_networks:exits', 'Sound: It ends the program (sys.exit, 3).'),
    ('own_networks:mixes', "Sound: Site 'last' mixes the examples of a batch"),
    ('own_networks:nan', "Sound: Site 'last' gives numbers that are not finite at init."),
    ('own_networks:pair', "Sound: Site 'last' gives a tuple"),
    ('own_networks:narrow', "Sound: Site 'last' "),
    ('own_networks:dropout', 'it draws random numbers, but must be deterministic'),
    ('own_networks:batch_norm', 'it changes stored statistics when it is judged'),
  ],
)
def test_a_network_of_your_own_that_breaks_the_contract(
  name, expected, tmp_path, monkeypatch, capsys
):
  for module, text in MODULES.items():
    (tmp_path / f'{module}.py').write_text(text)
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.chdir(tmp_path)
  for module in MODULES:
    monkeypatch.delitem(sys.modules, module, raising=False)
  monkeypatch.setattr(launch, 'set_up_devices', lambda count: None)
  args = tiny.arguments('cotrain', options={'model.name': name}, devices=0)
  assert launch.main(['launch', *args]) == 2
  error = capsys.readouterr().err
  assert expected in error
  assert error.startswith('error: ')
  assert error.count('\n') == 1
  assert not list(tmp_path.glob('runs*'))


def test_a_network_of_your_own_that_keeps_it(tmp_path, monkeypatch):
  (tmp_path / 'own_networks.py').write_text(OWN)
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.delitem(sys.modules, 'own_networks', raising=False)
  table = data.load('tabular:iris', valid=0.0)
  task = Task(table.task)
  check_fits(make_model(options(name='own_networks:Sound'), table), table, task)
  with pytest.raises(UserError, match=r'MLP gives outputs \(1, 2\) for one example: expected 3 on'):
    check_fits(models.MLP(1, 4, 4, num_classes=2), table, task)


def test_more_outputs_than_classes_are_said(caplog):
  table = data.load('tabular:iris', valid=0.0)
  check_fits(models.MLP(1, 4, 4, num_classes=5), table, Task(table.task))
  (record,) = caplog.records
  assert record.message == (
    'MLP gives 5 outputs, and tabular:iris has 3 classes: the other 2 are never right'
  )
  assert record.levelname == 'WARNING'
  caplog.clear()
  check_fits(models.MLP(1, 4, 4, num_classes=3), table, Task(table.task))
  assert not caplog.records


@pytest.mark.parametrize('constant', ['train', 'test'])
def test_a_target_that_does_not_vary(constant, caplog):
  split = lambda part: data.ArraySplit(
    np.eye(4, 6, dtype=np.float32),
    (3.0 + part * np.arange(4, dtype=np.float32))[:, None],
  )
  own = data.Data('own', 'regression', split(constant != 'train'), split(constant != 'test'), 1)
  network = models.MLP(1, 4, 4, num_classes=1)
  if constant == 'test':
    check_fits(network, own, Task('regression'))
    assert 'own, test: target 0 is 3 in all 4 examples: R² is undefined' in caplog.text
    caplog.clear()
    check_fits(network, own, Task('regression', metrics=('mae',)))
    assert not caplog.records
  else:
    with pytest.raises(UserError, match='own, train: target 0 is 3 in all 4 examples: expected on'):
      check_fits(network, own, Task('regression'))
