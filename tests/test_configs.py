"""Every option is there, has a comment, is read, and is refused when misspelt."""

import pytest
import tiny
from ml_collections import ConfigDict

from additive_jax import data
from additive_jax.cli.configs import config_file, config_names, load_config
from additive_jax.experiments import (
  booster,
  compress,
  cotrain,
  dna,
  experts,
  network,
  session,
  stochastic,
  sweep,
)

DEFAULT = tiny.ROOT / 'configs' / 'default.py'
EXPERIMENTS = ('sweep', 'cotrain', 'stochastic', 'experts', 'dna', 'booster', 'compress')


def options(config, path=''):
  """Dotted names of all options; what Optax or a model takes counts as one."""
  for key in config:
    value, name = config[key], f'{path}{key}'
    if isinstance(value, ConfigDict) and key != 'kwargs':
      yield from options(value, f'{name}.')
    else:
      yield name


@pytest.mark.parametrize('name', config_names())
def test_config_overrides_known_options_and_says_what_it_is(name):
  config, default = load_config(name), load_config('default')
  assert set(options(config)) == set(options(default))
  session.check_config(config)
  assert config.experiment in EXPERIMENTS
  assert config_file(name).read_text().startswith('"""')


def test_every_default_has_a_comment():
  """Each option stands below a comment, alone or in a group that one comment introduces."""
  lines = DEFAULT.read_text().splitlines()
  for number, line in enumerate(lines):
    if line.startswith('  config.'):
      above = number - 1
      while lines[above].startswith('  config.'):
        above -= 1
      assert lines[above].lstrip().startswith('#'), line


def test_misspelt_options_are_refused():
  config = tiny.config('sweep')
  with pytest.raises(AttributeError, match='Did you mean "learning_rate"'):
    config.learnin_rate = 1.0
  with pytest.raises(AttributeError, match='Did you mean "epochs"'):
    config.train.epocs = 1.0
  config.model.kwargs.width = 8
  config.optimizer.kwargs.b1 = 0.8
  config.schedule.kwargs.alpha = 0.1
  with pytest.raises(TypeError):
    config.num_seeds = 'two'


def test_every_option_is_read(tmp_path, tmp_path_factory, monkeypatch):
  """By some run, apart from checking its range and writing it down."""
  read, watched, paused = set(), {}, []

  def watch(config, path=''):
    watched[id(config)] = path
    for key in config:
      if isinstance(config[key], ConfigDict):
        watch(config[key], f'{path}{key}.')
    return config

  def recording(name):
    original = getattr(ConfigDict, name)

    def get(self, key):
      if not paused and id(self) in watched:
        read.add(f'{watched[id(self)]}{key}')
      return original(self, key)

    monkeypatch.setattr(ConfigDict, name, get)

  def unseen(name):
    original = getattr(session, name)

    def call(config):
      paused.append(name)
      try:
        return original(config)
      finally:
        paused.pop()

    monkeypatch.setattr(session, name, call)

  recording('__getattr__')
  recording('__getitem__')
  unseen('check_config')
  unseen('to_plain_config')
  small = {'num_seeds': 1, 'model.num_blocks': 2}
  halved = small | {'sweep.halving': 2, 'sweep.rungs': 2, 'sweep.shared_epochs': 0.0}
  searched = small | {'search.method': 'random', 'search.budget': 4, 'search.population': 2}
  random = small | {'sampler.name': 'bernoulli', 'stochastic.modes': ('per_sample',)}
  configs = [
    watch(tiny.config('sweep', halved)),
    watch(tiny.config('cotrain', searched)),
    watch(tiny.config('stochastic', random)),
  ]
  with_routers = {
    'num_seeds': 1,
    'data.name': 'digits',
    'data.train_examples': 8,
    'data.test_examples': 8,
    'model.name': 'transformer',
    'model.patch_size': 8,
    'model.num_blocks': 1,
    'model.num_chunks': 2,
    'train.epochs': 1.0,
    'train.batch_size': 4,
    'train.structures_per_step': 1,
    'experts.variants': ('softmax', 'single'),
    'experts.budgets': ('params',),
    'dna.num_backbone': 1,
    'dna.num_steps': 1,
    'dna.attention': 0,
    'dna.mlp': 1,
    'dna.identity': 1,
    'dna.top_k': 1,
    'dna.skip': 0.0,
  }
  routed = [watch(tiny.config(name, with_routers)) for name in ('experts', 'dna')]
  plain = ('lenet', 'vgg', 'dense_stack')
  kinds = {name: ('sub_activation' if name in plain else 'residual',) for name in network.TASKS}
  networks = [
    watch(tiny.config('sweep', {'model.name': name, 'model.gates': gates}))
    for name, gates in kinds.items()
  ]
  few = small | {'compress.epochs': 1.0, 'compress.tune_epochs': 0.0, 'compress.sparsities': ()}
  compressed = watch(tiny.config('compress', few))
  few = small | {'train.epochs': 1.0, 'train.structures_per_step': 1, 'booster.num_models': 2}
  few |= {'booster.variants': ('clusters', 'one_narrow'), 'booster.features': 'embedding'}
  boosted = watch(tiny.config('booster', few))
  known = set(options(configs[0]))
  read.clear()
  with tiny.cached_programs(tmp_path_factory.getbasetemp() / 'programs'), tiny.two_sizes():
    sweep.run(configs[0], tmp_path / 'sweep', devices=1)
    cotrain.run(configs[1], tmp_path / 'cotrain', devices=1)
    stochastic.run(configs[2], tmp_path / 'stochastic', devices=1)
    experts.run(routed[0], tmp_path / 'experts', devices=1)
    dna.run(routed[1], tmp_path / 'dna', devices=1)
    compress.run(compressed, tmp_path / 'compress', devices=1)
    booster.run(boosted, tmp_path / 'booster', devices=1)
  for config in networks:
    network.make_model(config.model, data.load('digits'))
  # The launcher reads this one.
  assert known - read == {'experiment'}
