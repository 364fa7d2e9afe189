"""Every option is declared, shown with its meaning, read by some run, and refused when misspelt."""

import ast
import dataclasses

import options_page
import pytest
import tiny
from additive_jax.configs import default

from additive_jax import data
from additive_jax.cli.configs import config_file, config_names, load_config
from additive_jax.experiments import network, opening, session, study
from additive_jax.experiments.options import (
  DECLARED,
  PLACEMENT,
  Option,
  Options,
  options_of,
  read_options,
  reading,
)
from additive_jax.experiments.studies import STUDIES


@pytest.mark.parametrize('name', config_names())
def test_config_overrides_known_options_and_says_what_it_is(name):
  config = load_config(name)
  assert read_options(config).experiment in STUDIES
  assert config_file(name).read_text().startswith('"""')


@pytest.mark.parametrize('name', config_names())
def test_data_of_a_config_on_a_machine_with_no_more_than_the_package(name, monkeypatch, tmp_path):
  monkeypatch.setattr(default, 'FASHION_MNIST', tmp_path / 'none')
  found = opening.load_data(read_options(load_config(name)).data)
  assert found.name in ('digits', 'stdlib')
  assert min(map(len, found.splits.values())) > 0


def sections(section=Options):
  """A section and all that are in it."""
  yield section
  for declared in options_of(section).values():
    if not isinstance(declared, Option):
      yield from sections(declared)


def test_the_page_of_options_shows_what_is_declared():
  assert config_file('default').read_text() == options_page.render(), (
    'run: python tests/options_page.py > configs/default.py'
  )
  assert read_options(load_config('default')) == Options()


@pytest.mark.parametrize('section', sorted(set(sections()), key=str), ids=lambda one: one.__name__)
def test_every_option_has_a_meaning(section):
  options = {name for name, one in options_of(section).items() if isinstance(one, Option)}
  assert set(options_page.meanings(section)) >= options
  assert section.__doc__


@pytest.mark.parametrize('option', DECLARED.values(), ids=lambda one: one.name)
def test_every_default_is_allowed(option):
  section = Options()
  *parents, name = option.name.split('.')
  for parent in parents:
    section = getattr(section, parent)
  value = getattr(section, name)
  assert option.read(value) == value
  assert type(option.read(value)) is option.kind


def test_where_a_run_is_computed_is_no_part_of_it():
  assert set(PLACEMENT) == {
    'init_from',  # config.json has a digest of what is there
    'pretrained',  # likewise
    'limit',
    'shard',
    'train.expert_devices',
    'train.fsdp_devices',
    'train.tensor_devices',
    'train.zero',
    'train.offload',
    'train.pipe_devices',
    'train.microbatches',
    'train.pipe_schedule',
    'train.pipe_repeats',
  }


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


def test_options_in_python():
  """A config, nested dicts and `Options` give the same; lists and whole numbers are converted."""
  config = tiny.config('sweep', {'model.hidden': (8, 4)})
  options = read_options(config)
  assert options.model.hidden == (8, 4)
  assert read_options(options) == options
  plain = dataclasses.asdict(options)
  plain['model']['hidden'], plain['learning_rate'] = [8, 4], 1
  changed = read_options(plain)
  assert changed == reading.replaced(options, {'learning_rate': 1.0})
  assert isinstance(changed.learning_rate, float)


# Short runs that together read every option.
TWO = {'model.num_blocks': 2}
ROUTED = {
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
}
READING = {
  'sweep': TWO
  | {
    'sweep.halving': 2,
    'sweep.rungs': 2,
    'sweep.shared_epochs': 0.0,
    'data.valid': 0.2,
    'data.valid_examples': 8,
  },
  'cotrain': TWO | {'search.method': 'random', 'search.budget': 4, 'search.population': 2},
  'stochastic': TWO | {'sampler.name': 'bernoulli', 'stochastic.modes': ('per_sample',)},
  'experts': ROUTED | {'experts.variants': ('softmax', 'single'), 'experts.budgets': ('params',)},
  'dna': ROUTED
  | {
    'dna.num_backbone': 1,
    'dna.num_steps': 1,
    'dna.attention': 0,
    'dna.mlp': 1,
    'dna.identity': 1,
    'dna.top_k': 1,
    'dna.skip': 0.0,
  },
  'compress': TWO
  | {
    'compress.epochs': 1.0,
    'compress.tune_epochs': 0.0,
    'compress.distill': 0.5,
    'compress.sparsities': (),
  },
  'booster': TWO
  | {
    'train.epochs': 1.0,
    'train.structures_per_step': 1,
    'booster.num_models': 2,
    'booster.variants': ('clusters', 'one_narrow'),
    'booster.features': 'embedding',
    'train.pipe_devices': 2,
    'train.microbatches': 2,
  },
}


def test_code_has_the_name_of_every_option():
  """A quick look for options that nothing reads; runs tell for sure below."""
  sources = (tiny.ROOT / 'additive_jax').rglob('*.py')
  trees = [ast.parse(path.read_text()) for path in sources if 'options' not in path.parts]
  nodes = [node for tree in trees for node in ast.walk(tree)]
  names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
  unread = [name for name in DECLARED if name.rpartition('.')[2] not in names]
  # Read by names that are put together.
  assert unread == ['data.train_examples', 'data.test_examples', 'data.valid_examples']


@pytest.mark.thorough
def test_every_option_is_read(tmp_path, tmp_path_factory, monkeypatch):
  """By some run, apart from checking its range and writing it down."""
  read, paused = set(), []

  def recorded(section):
    original = section.__getattribute__

    def get(self, name):
      if not paused:
        read.add((section, name))
      return original(self, name)

    monkeypatch.setattr(section, '__getattribute__', get)

  def unseen(module, name):
    original = getattr(module, name)

    def call(*args):
      paused.append(name)
      try:
        return original(*args)
      finally:
        paused.pop()

    monkeypatch.setattr(module, name, call)

  for section in set(sections()):
    recorded(section)
  for module in (opening, study):
    unseen(module, 'read_options')
  for module in (session, study):
    unseen(module, 'replaced')
  unseen(opening, 'resolve')
  monkeypatch.setattr(opening, 'unused', lambda *given: ())  # goes over all options
  unseen(study, 'check_same')
  with tiny.cached_programs(tiny.programs(tmp_path_factory)), tiny.two_sizes():
    for experiment, options in READING.items():
      config = tiny.config(experiment, {'num_seeds': 1} | options)
      devices = config.train.pipe_devices
      STUDIES[experiment].run(config, tmp_path / experiment, devices=devices)
  for name in network.NETWORKS:
    gates = ('sub_activation' if name in ('lenet', 'vgg', 'dense_stack') else 'residual',)
    options = read_options(tiny.config('sweep', {'model.name': name, 'model.gates': gates}))
    network.make_model(options.model, data.load('digits', valid=0.0))
  declared = {
    (section, name)
    for section in sections()
    for name, one in options_of(section).items()
    if isinstance(one, Option)
  }
  # A run whose narrow copies are processes reads it.
  unread = {f'{section.__name__}.{name}' for section, name in declared - read}
  assert unread == {'BoosterOptions.quorum'}


def test_a_name_is_a_config_of_the_package_whatever_lies_in_the_folder(tmp_path, monkeypatch):
  """A config by its path is a program that runs; a name never becomes one."""
  monkeypatch.chdir(tmp_path)
  for name in ('exp2', 'exp2.py', 'configs.py'):
    (tmp_path / name).write_text('open("ran", "w")\n')
  assert load_config('exp2').experiment == 'cotrain'
  assert not (tmp_path / 'ran').exists()
