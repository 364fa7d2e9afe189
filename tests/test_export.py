"""An exported structure stands alone, and is written whole or not at all."""

import json
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd
import pytest
import safetensors.numpy
import tiny
from flax.traverse_util import flatten_dict

from additive_jax import Additive, UserError
from additive_jax import export as export_
from additive_jax.compress.cutting import cut
from additive_jax.experiments.fit import fit
from additive_jax.experiments.opening import open_session
from additive_jax.experiments.pools import open_pools
from additive_jax.export import export, load, main
from additive_jax.files import seal
from additive_jax.models import MLP

ROWS = jax.random.normal(jax.random.key(1), (4, 4))
GATES = {'model.gates': ('residual', 'sub_activation'), 'model.num_chunks': 2}
STRUCTURE = '100111'  # block_00 with its chunks apart, no block_01
EXACT = 1e-5  # of logits of about 1, in float32


class Through(nn.Module):
  layer: nn.Module

  def __call__(self, h):
    return self.layer(h)


class Own(Additive):
  """A network of one's own, whose first site reads a layer that others could read too."""

  num_classes: int
  width: int = 3

  def setup(self):
    self.stem = nn.Dense(self.width, name='stem')
    shared = nn.Dense(self.width, name='shared')
    self.sites = [Through(shared, name='site_0'), nn.Dense(self.width, name='site_1')]
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
  assert described['structure'] == '100011'  # the same network: no block_01 to join chunks in
  assert described['gates'][:3] == ['block_00/residual', 'block_00/join_1', 'block_01/residual']
  assert (described['run'], described['checkpoint'], described['step']) == ('run', 'pool-seed10', 3)
  assert main(['export', str(run), *options[:1], f'--to={tmp_path / "mean"}', '--ema']) == 2
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
  with pytest.raises(UserError, match='run of Own: expected --model=test_export:Own, as it was be'):
    open_pools(run)
  config = json.loads((run / 'config.json').read_bytes())
  del config['model']['source'], config['crc']  # of a version before, which goes on
  (run / 'config.json').write_text(json.dumps(seal.sealed(config)))
  with pytest.raises(UserError, match='run of Own: expected --model=MODULE:Own, where it is'):
    open_pools(run)
  make_run(run, 1, (0,), options)
  own = ['--model=test_export:Own']
  assert main(['export', str(run), '--structure=01', f'--to={target}', *own]) == 0
  with pytest.raises(UserError, match="network 'test_export:Own': expected one of the library"):
    load(target)
  model, variables = load(target, model=Own)
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
    (
      ['RUN', '--to=NEW', '--structure=11', '--model=test_export.Own'],
      "model 'test_export.Own': expected MODULE:CLASS, or one of mlp",
    ),
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


def test_an_exported_network_is_replaced(found, random_pool, tmp_path):
  """All of it or nothing of it, and nothing else is."""
  target = export(found, tmp_path / 'net')
  before = tiny.contents(target)
  other = cut(MLP(1, 4, 6, 3), random_pool(MLP(1, 4, 6, 3), ROWS))
  with pytest.raises(TypeError):
    export(other, target, notes={'model': found.model}, overwrite=True)
  assert tiny.contents(target) == before
  export(other, target, overwrite=True)
  assert load(target)[0] == other.model
  (target / 'notes.txt').touch()
  (tmp_path / 'empty').mkdir()
  for directory, told in ((target, 'holds notes.txt'), (tmp_path / 'empty', 'has no model.json')):
    with pytest.raises(UserError, match=f'{told}: expected an exported network alone'):
      export(found, directory, overwrite=True)
  assert {path.name for path in tmp_path.iterdir()} == {'net', 'empty'}


def test_the_coding_of_a_table_is_exported(tmp_path):
  """Numbers with gaps, texts, and a target in its units: new rows are as the run had them."""
  rng = np.random.default_rng(0)
  table = {'age': rng.normal(size=60) + 40, 'town': np.resize(['a', 'b', 'c'], 60)}
  rows = pd.DataFrame(table | {'price': 7 + 3 * table['age']})
  rows.loc[::7, 'age'] = np.nan
  rows.to_csv(tmp_path / 'a.csv', index=False)
  named = {'name': f'file:{tmp_path / "a.csv"}', 'target': 'price', 'missing': 'fill'}
  options = {f'data.{key}': value for key, value in named.items()} | {'sampler.name': 'uniform'}
  make_run(tmp_path / 'run', 1, (0,), options)
  arguments = ['export', str(tmp_path / 'run'), '--structure=101', f'--to={tmp_path / "net"}']
  assert main(arguments) == 0
  assert main(arguments) == 2
  assert main([*arguments, '--overwrite']) == 0
  coding, expected = export_.coding(tmp_path / 'net'), open_pools(tmp_path / 'run').data.coding
  np.testing.assert_array_equal(coding(rows), expected(rows))
  outputs = rng.normal(size=(5, 1))
  np.testing.assert_array_equal(coding.decoded(outputs), expected.decoded(outputs))
  assert (coding.features, coding.units) == (expected.features, expected.units)


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
  with pytest.raises(UserError, match=r'model\.json is damaged \(without parameters\)'):
    load(target)
  with pytest.raises(UserError, match=r'none/model\.json'):
    load(tmp_path / 'none')


def rewritten(target, change):
  """`model.json` as a stranger would write it, with a checksum that is right."""
  described, _ = seal.parsed((target / 'model.json').read_bytes())
  change(described)
  (target / 'model.json').write_text(json.dumps(seal.sealed(described)))


def fixed(model, **fields):
  return {'network': 'fixed', 'model': model, 'fields': fields, 'structure': '11'}


OURS = 'additive_jax.models.mlp:MLP'
POPEN = fixed('subprocess:Popen', args=['touch', 'ran'])
HOSTILE = {
  'a program': (POPEN, "network 'subprocess:Popen': expected one of the library (BERT, ConvNet"),
  'a module': (fixed('evil:MLP'), "network 'evil:MLP': expected one of the library"),
  'a module of ours': (
    fixed('additive_jax.experiments.booster.process:main'),
    'expected one of th',
  ),
  'a name in ours': (
    fixed('additive_jax.compress.cutting:jax.clear_caches'),
    'expected one of the',
  ),
  'no class': (fixed(['MLP']), 'expected a class of the library'),
  'no fields': (
    {'network': 'fixed', 'model': OURS},
    '(fields): expected a cl',
  ),
  'a parent': (
    fixed(OURS, parent=1),
    "with ['parent']: expected fields o",
  ),
  'other fields': (
    fixed(OURS, args=1),
    "with ['args']: expected fields ou",
  ),
  'few fields': (fixed(OURS, width=1), 'missing 3 required'),
  'a step': (
    {'network': 'steps', 'steps': [{'kind': 'subprocess'}]},
    "step {'kind': 'subprocess'}",
  ),
  'a parent of a step': (
    {'network': 'steps', 'steps': [{'kind': 'flat', 'parent': None}]},
    'unknown field parent',
  ),
  'text for steps': ({'network': 'steps', 'steps': 'flat'}, "config with steps 'flat'"),
  'another kind': ({'network': 'os:system'}, "config with network 'os:system': expected 'steps'"),
  'no config': ('os:system', 'config with network None'),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_a_strangers_network_runs_no_code(name, found, tmp_path, monkeypatch):
  config, message = HOSTILE[name]
  (tmp_path / 'evil.py').write_text('open("ran", "w")\n')
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  target = export(found, tmp_path / 'net')
  rewritten(target, lambda described: described.update(config=config))
  with pytest.raises(UserError) as error:
    load(target)
  assert message in str(error.value)
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'ran').exists()
  assert 'evil' not in sys.modules


def test_the_class_that_is_given_is_the_one_that_was_exported(found, tmp_path):
  target = export(found, tmp_path / 'net')
  rewritten(target, lambda described: described.update(config=POPEN))
  with pytest.raises(UserError, match="'subprocess:Popen' and model=Own: expected the"):
    load(target, model=Own)


@pytest.mark.parametrize('name', ['model.json', 'model.safetensors'])
def test_a_changed_digit_is_named(name, found, tmp_path):
  target = export(found, tmp_path / 'net')
  content = bytearray((target / name).read_bytes())
  place = content.index(b'max_difference') - 2 if b'max_difference' in content else -3
  content[place] ^= 1
  (target / name).write_bytes(content)
  with pytest.raises(UserError, match=f'{name} is damaged'):
    load(target)


def test_a_strangers_run_imports_no_code(run, tmp_path, monkeypatch):
  """Not by the name of the model, nor by that of a module in its options."""
  (tmp_path / 'evil.py').write_text('open("ran", "w")\n')
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  shutil.copytree(run, tmp_path / 'theirs')
  config = json.loads((run / 'config.json').read_bytes())
  for value in ('evil:Net', 'Evil'):
    config['model'] |= {'name': value, 'fields': 'evil:Net()', 'kwargs': {'run': 'evil:Net'}}
    (tmp_path / 'theirs' / 'config.json').write_text(json.dumps(seal.sealed(config)))
    with pytest.raises(UserError, match=f'is a run of {value}: expected --model=MODULE:'):
      open_pools(tmp_path / 'theirs')
  assert not (tmp_path / 'ran').exists()
  assert 'evil' not in sys.modules
