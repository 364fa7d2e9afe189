"""Options that a run was given and does not use are said."""

import logging

import pytest
import tiny

import additive_jax as aj
from additive_jax.cli.configs import config_names, load_config
from additive_jax.experiments.options import DECLARED, Options, read_options, replaced
from additive_jax.experiments.studies import STUDIES
from additive_jax.experiments.unused import EXPERIMENTS, OF, WHEN, unused


@pytest.fixture(scope='module')
def images():
  return aj.data.load('digits', valid=0.0)


# Options, and those of them that are not used.
CASES = [
  ({'experiment': 'cotrain', 'dna.top_k': 3}, ['dna.top_k']),
  ({'experiment': 'dna', 'dna.top_k': 3, 'model.name': 'transformer'}, []),
  ({'experiment': 'sweep', 'structures': ('101',)}, ['structures']),
  ({'experiment': 'sweep', 'model.num_heads': 2}, ['model.num_heads']),
  ({'experiment': 'sweep', 'model.num_heads': 2, 'model.name': 'transformer'}, []),
  ({'experiment': 'sweep', 'model.num_blocks': 2, 'model.name': 'transformer'}, []),
  ({'experiment': 'sweep', 'model.num_blocks': 2, 'model.name': 'vgg'}, ['model.num_blocks']),
  ({'experiment': 'sweep', 'model.name': 'mine:Net', 'model.width': 8}, ['model.width']),
  ({'experiment': 'sweep', 'data.sequence_length': 8}, ['data.sequence_length']),
  ({'experiment': 'sweep', 'data.download': True}, ['data.download']),
  ({'experiment': 'sweep', 'data.target': 'y'}, ['data.target']),
  ({'experiment': 'sweep', 'data.image_size': 8}, ['data.image_size']),
  ({'experiment': 'sweep', 'data.valid_examples': 8}, ['data.valid_examples']),
  ({'experiment': 'sweep', 'sampler.keep_rate': 0.3}, ['sampler.keep_rate']),
  ({'experiment': 'sweep', 'sampler.keep_rate': 0.3, 'sampler.name': 'bernoulli'}, []),
  ({'experiment': 'sweep', 'train.pipe_repeats': 2}, ['train.pipe_repeats']),
  ({'experiment': 'sweep', 'sweep.rungs': 2}, ['sweep.rungs']),
  ({'experiment': 'sweep', 'sweep.rungs': 2, 'sweep.halving': 2}, []),
  ({'experiment': 'cotrain', 'structures': ('101',), 'search.method': 'random'}, ['search.method']),
  ({'experiment': 'cotrain', 'limit': 5.0}, []),
  ({'experiment': 'cotrain', 'structures': ('101',), 'limit': 5.0}, []),
  ({'experiment': 'dna', 'limit': 5.0}, []),
  ({'experiment': 'booster', 'booster.quorum': 0.5}, ['booster.quorum']),
  ({'experiment': 'compress', 'compress.temperature': 3.0}, ['compress.temperature']),
  ({'experiment': 'compress', 'compress.gradual_rate': 2.0}, ['compress.gradual_rate']),
  ({'experiment': 'compress', 'compress.gradual_rate': 2.0, 'compress.gradual': (0.9,)}, []),
  ({'experiment': 'sweep', 'schedule.name': 'constant'}, []),
  (
    {'experiment': 'sweep', 'schedule.name': 'constant', 'schedule.kwargs': {'a': 1}},
    ['schedule.kwargs'],
  ),
  ({'experiment': 'mine', 'dna.top_k': 3}, []),
]


@pytest.mark.parametrize(('options', 'expected'), CASES)
def test_what_is_not_used(options, expected, images):
  assert [name for name, _ in unused(replaced(Options(), options), images)] == expected


def test_the_table_is_of_options_and_experiments():
  assert set(EXPERIMENTS) == {*STUDIES, 'prune'}
  assert WHEN.keys() <= DECLARED.keys()
  assert OF.keys() <= {name.partition('.')[0] for name in DECLARED}


def test_packaged_configs_use_what_they_say(images):
  text = aj.data.load('stdlib')
  for name in config_names():
    options = read_options(load_config(name))
    data = text if options.data.name == 'stdlib' else images
    assert list(unused(options, data)) == [], name


def test_a_run_says_so(tmp_path, caplog):
  options = {'dna.top_k': 3, 'sweep.modes': ('shared',), 'num_seeds': 1, 'cotrain.top_k': 4}
  with caplog.at_level(logging.WARNING, 'additive_jax'):
    STUDIES['sweep'].run(tiny.config('sweep', options), tmp_path / 'run', devices=1)
  (message,) = [text for text in caplog.messages if 'not used' in text]
  assert message.startswith('not used: config.train.epochs 2.0, for structures alone, or config.sw')
  assert "; config.dna.top_k 3, for config.experiment 'dna'" in message


def test_options_in_whose_place_something_was_given(images):
  options = replaced(
    Options(experiment='sweep'),
    {'model.width': 8, 'data.download': True, 'data.flip_rate': 0.1, 'data.augment': ('flip',)}
    | {'learning_rate': 0.5, 'schedule.name': 'linear_schedule', 'train.epochs': 2.0},
  )
  named = lambda *given: [name for name, _ in unused(options, images, given)]
  assert named() == ['data.download']
  assert named('data') == ['data.download']
  assert named('model', 'progress') == ['data.download', 'model.width']
  assert sorted(named('optimizer', 'augment')) == sorted(
    ['data.augment', 'data.download', 'data.flip_rate', 'learning_rate', 'schedule.name']
  )


def test_a_call_says_so(images, tmp_path, caplog):
  images = aj.data.take(images.train, 64)
  given = {'sampler.keep_rate': 0.3, 'model.width': 8, 'data.download': True, 'rungs': 2}
  options = {'workdir': tmp_path, 'modes': ('shared',), 'epochs': 0.1, 'seeds': 1}
  with caplog.at_level(logging.WARNING, 'additive_jax'):
    aj.sweep(aj.models.MLP(1, 4, 4, num_classes=10), images, **options, **given)
  (message,) = [text for text in caplog.messages if 'not used' in text]
  for name in ('sampler.keep_rate', 'sweep.rungs'):
    assert f'config.{name} ' in message
  for name in ('model.width 8, for runs without model=', 'data.download True, for runs without d'):
    assert f'config.{name}' in message
