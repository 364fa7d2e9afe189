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
  assert set(EXPERIMENTS) == set(STUDIES)
  assert WHEN.keys() <= DECLARED.keys()
  assert OF.keys() <= {name.partition('.')[0] for name in DECLARED}


def test_packaged_configs_use_what_they_say(images):
  text = aj.data.load('stdlib', valid=0.0)
  for name in config_names():
    options = read_options(load_config(name))
    data = text if options.data.name == 'stdlib' else images
    assert list(unused(options, data)) == [], name


def test_a_run_says_so(tmp_path, caplog):
  options = {'dna.top_k': 3, 'sweep.modes': ('shared',), 'num_seeds': 1, 'cotrain.top_k': 4}
  with caplog.at_level(logging.WARNING, 'additive_jax'):
    STUDIES['sweep'].run(tiny.config('sweep', options), tmp_path / 'run', devices=1)
  assert "config.dna.top_k 3 is not used: it is for config.experiment 'dna'" in caplog.messages
