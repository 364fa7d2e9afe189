"""The network of a config: every name on data that fits, and one line where it cannot be."""

import jax
import numpy as np
import pytest
import tiny

from additive_jax import UserError, data, models
from additive_jax.experiments.network import NETWORKS, make_model
from additive_jax.experiments.options import read_options
from additive_jax.models.additive import gate_names

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
    'images': data.load('digits'),
    'a table': data.load('tabular:iris'),
    'text': data.load(f'text:{path}', sequence_length=9),
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
    ('images', {'width': 0}, 'width 0: expected at least 1'),
    ('images', {'num_blocks': 0}, 'num_blocks 0: expected at least 1'),
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
    ('images', {'name': 'transformer', 'patch_size': 0}, 'patch_size 0: expected at least 1'),
    ('text', {'name': 'transformer', 'num_heads': 3}, '8 units of width over 3 heads: expected a'),
    (
      'text',
      {'name': 'transformer', 'num_heads': 8, 'positions': 'rope'},
      'expected a multiple of 2',
    ),
    ('text', {'name': 'transformer', 'unit': 'relu'}, "unit 'relu': expected one of gelu, swiglu"),
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
      'config.model.channels (4, 0): expected sizes of at ',
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
