"""An exported structure stands alone, and is written whole or not at all."""

import json
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
import tiny
from flax.traverse_util import flatten_dict

from additive_jax import Additive, UserError
from additive_jax.compress.cutting import cut
from additive_jax.experiments.fit import fit
from additive_jax.experiments.opening import open_session
from additive_jax.experiments.pools import open_pools
from additive_jax.export import export, load, main
from additive_jax.models import MLP

ROWS = jax.random.normal(jax.random.key(1), (4, 4))
GATES = {'model.gates': ('residual', 'sub_activation'), 'model.num_chunks': 2}
STRUCTURE = '100111'  # block_00 with its chunks apart, no block_01
EXACT = 1e-5  # of logits of about 1, in float32


class Own(Additive):
  """A network of one's own."""

  num_classes: int
  width: int = 3

  def setup(self):
    self.stem = nn.Dense(self.width, name='stem')
    self.sites = [nn.Dense(self.width, name=f'site_{i}') for i in range(2)]
    self.head = nn.Dense(self.num_classes, name='head')

  def embed(self, x):
    return self.stem(x)

  def readout(self, h):
    return self.head(h)


def make_run(path, num_steps, seeds, options):
  """What a run leaves that was stopped after `num_steps` steps."""
  with open_session(tiny.config('cotrain', options), path, check=lambda session: None) as session:
    for seed in seeds:
      trainer = session.trainer(session.training.recipe(9), session.training.sampler(9), seed)
      fit(session, trainer, num_steps, f'pool-seed{seed}')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The directory of a run with two pools."""
  path = tmp_path_factory.mktemp('run') / 'run'
  make_run(path, 3, (2, 10), GATES)
  return path


@pytest.mark.slow
def test_a_structure_of_a_run(run, tmp_path, caplog):
  """Loaded by a process that knows neither the run nor this one, it computes what the pool does."""
  arguments = ['export', str(run), f'--structure={STRUCTURE}', f'--to={tmp_path / "net"}']
  assert main(arguments) == 0
  program = (
    'import sys; import jax.numpy as jnp; from additive_jax.export import load;'
    'model, variables = load("net");'
    'print(model.apply(variables, jnp.array(eval(sys.argv[1]))).tolist())'
  )
  rows = np.asarray(ROWS).tolist()
  command = [sys.executable, '-c', program, repr(rows)]
  env = tiny.environment(tmp_path / 'cache')
  printed = subprocess.run(
    command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True
  ).stdout
  pools = open_pools(run)
  _, saved = pools.read(ROWS, 'pool-seed2')  # the first, in the order of numbers
  logits = pools.model.apply(saved.variables, ROWS, STRUCTURE)
  assert np.abs(np.array(json.loads(printed)) - logits).max() <= EXACT
  assert jnp.abs(logits - pools.model.apply(saved.variables, ROWS)).max() > 1e-2


# Plain Orbax, told of no devices, looks in the files where the leaves were.
@pytest.mark.filterwarnings('ignore:Sharding info not provided:UserWarning')
def test_what_is_written(run, tmp_path):
  target = tmp_path / 'net'
  options = [f'--structure={STRUCTURE}', f'--to={target}', '--checkpoint=pool-seed10']
  assert main(['export', str(run), *options]) == 0
  assert {path.name for path in target.iterdir()} == {'model.json', 'model.safetensors', 'orbax'}
  assert [path.name for path in tmp_path.iterdir()] == ['net']
  described = json.loads((target / 'model.json').read_bytes())
  assert described['structure'] == STRUCTURE
  assert described['gates'][:3] == ['block_00/residual', 'block_00/join_1', 'block_01/residual']
  assert (described['run'], described['checkpoint'], described['step']) == ('run', 'pool-seed10', 3)
  receipt, costs = described['receipt'], described['cost']
  assert receipt['max_difference'] <= EXACT
  assert receipt['num_examples'] == 30  # the whole test split
  assert costs['exported']['flops'] < costs['pool']['flops']
  # Of three blocks one is gone: 8 + 8 + 8 · 8 + 8 + 8 · 8 + 8 numbers.
  assert costs['pool']['bytes'] - costs['exported']['bytes'] == 160 * 4
  model, variables = load(target)
  leaves = flatten_dict(variables['params'], sep='/')
  tensors = safetensors.numpy.load_file(target / 'model.safetensors')
  assert tensors.keys() == leaves.keys()  # no name has two parts here, such as block_00/mlp
  orbax = ocp.PyTreeCheckpointHandler().restore((target / 'orbax' / '0' / 'state').absolute())
  orbax = flatten_dict(orbax['params'], sep='/')
  for name, leaf in leaves.items():
    assert np.array_equal(tensors[name], leaf)
    assert np.array_equal(orbax[name], leaf)
    said = described['parameters'][name]
    assert (said['shape'], said['dtype'], said['tensor']) == (list(leaf.shape), 'float32', name)
  assert not hasattr(model, 'sites')


def test_a_network_of_ones_own(tmp_path):
  run, target = tmp_path / 'run', tmp_path / 'net'
  options = {'model.name': 'test_export:Own', 'sampler.name': 'uniform'}
  make_run(run, 1, (0,), options)
  with pytest.raises(UserError, match=r'is a run of Own: expected --model=MODULE:Own, where it is'):
    open_pools(run)
  own = ['--model=test_export:Own']
  assert main(['export', str(run), '--structure=01', f'--to={target}', *own]) == 0
  model, variables = load(target)
  assert set(variables['params']) == {'stem', 'site_1', 'head'}
  pools = open_pools(run, network='test_export:Own')
  expected = pools.model.apply(pools.read(ROWS, 'pool-seed0')[1].variables, ROWS, '01')
  assert jnp.array_equal(model.apply(variables, ROWS), expected)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'no run: expected one run directory'),
    (['RUN', 'RUN', '--to=NEW', '--structure=1'], 'run: expected one run directory'),
    (['RUN', '--to=NEW'], 'no --structure: expected RUN --structure=BITS --to=DIR'),
    (['RUN', '--structure=100111'], 'no --to: expected RUN --structure=BITS --to=DIR'),
    (['RUN', '--strcture=1'], "flag 'strcture'. Did you mean: structure ?: expected one of --"),
    (['RUN', '--to=NEW', '--structure=1001'], 'structure 1001 has 4 gates: expected 6, one per'),
    (['RUN', '--to=NEW', '--structure=10x111'], "structure '10x111': expected a string of 0 and 1"),
    (['NEW', '--to=NEW', '--structure=1'], '(No such file or directory): expected a run directory'),
    (['OLD', '--to=NEW', '--structure=1'], 'config.json without data and model: expected the conf'),
    (['RUN', '--to=OLD', '--structure=100111'], 'old exists: expected a directory that is yet to'),
    (['RUN', '--to=NEW/net', '--structure=1'], 'new to be a directory'),
    (
      ['RUN', '--to=NEW', '--structure=100111', '--checkpoint=pool'],
      "checkpoint 'pool' of ",
    ),
    (
      ['RUN', '--to=NEW', '--structure=100111', '--model=test_export:None'],
      "config.model.name 'test_export:None'",
    ),
    (['RUN', '--to=NEW', '--structure=11', '--model=test_export:Own'], 'of another model: '),
  ],
)
def test_bad_input(arguments, message, run, tmp_path, capsys):
  (tmp_path / 'old').mkdir()
  (tmp_path / 'old' / 'config.json').write_text('{}')
  paths = {'RUN': str(run), 'NEW': str(tmp_path / 'new'), 'OLD': str(tmp_path / 'old')}
  for name, path in paths.items():
    arguments = [argument.replace(name, path) for argument in arguments]
  before = tiny.contents(run)
  assert main(['export', *arguments]) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  assert message in error
  assert error.count('\n') == 1
  assert [path.name for path in tmp_path.rglob('*')] == ['old', 'config.json']
  assert tiny.contents(run) == before


def test_help(capsys):
  assert main(['export', '--help']) == 0
  assert 'additive-jax export RUN --structure=1101 --to=DIR' in capsys.readouterr().out


@pytest.fixture(scope='module')
def found(random_pool):
  model = MLP(2, 4, 6, 3)
  keep = {'block_00/hidden': np.arange(6) < 2}
  return cut(model, random_pool(model, ROWS), keep=keep)


def test_what_was_cut_out(found, tmp_path):
  """With notes of one's own; what is there stays."""
  target = export(found, tmp_path / 'net', notes={'accuracy': 0.5})
  described = json.loads((target / 'model.json').read_bytes())
  assert described['kept'] == {'block_00/hidden': [0, 1]}
  assert described['accuracy'] == 0.5
  model, variables = load(target)
  assert model == found.model
  assert jax.tree.all(jax.tree.map(jnp.array_equal, variables, found.variables))
  before = tiny.contents(target)
  with pytest.raises(UserError, match='net exists: expected a directory that is yet to be made'):
    export(found, target)
  assert tiny.contents(target) == before


def test_a_failure_leaves_nothing(found, tmp_path):
  with pytest.raises(TypeError):
    export(found, tmp_path / 'net', notes={'model': found.model})
  with pytest.raises(UserError, match='expected a directory that may be written'):
    export(found, '/proc/cut')
  assert not list(tmp_path.iterdir())


def test_damaged_files(found, tmp_path):
  target = export(found, tmp_path / 'net')
  for path in (target / 'orbax' / '0' / 'state').rglob('d/*'):
    path.write_bytes(bytes(path.stat().st_size))
  with pytest.raises(UserError, match='is damaged'):
    load(target)
  (target / 'model.json').write_text('{"config": {}}')
  with pytest.raises(UserError, match=r"model.json \('parameters'\): expected what"):
    load(target)
  with pytest.raises(UserError, match=r'none/model\.json'):
    load(tmp_path / 'none')
