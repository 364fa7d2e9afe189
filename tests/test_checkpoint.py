"""Checkpoints come back bit by bit or not at all."""

import contextlib
import itertools
import json
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import additive_jax as aj
from additive_jax.errors import UserError
from additive_jax.files import checksum
from additive_jax.files.checkpoint import Checkpointer
from additive_jax.parallel.mesh import make_mesh
from additive_jax.parallel.placement import Placement
from additive_jax.train.fleet import Fleet
from additive_jax.train.recipe import Recipe
from additive_jax.train.samplers import fixed
from additive_jax.train.trainer import Trainer

IDENTITY = {'model': 'MLP', 'gates': ['block_0/mlp', 'block_1/mlp']}


def make_state(seed):
  """Parameters of several dtypes, an AdamW state, and numbers of every kind."""
  rng = np.random.default_rng(seed)
  params = {
    'block_0/mlp': {
      'kernel': jnp.array(rng.normal(size=(64, 33)), jnp.float32),
      'bias.x': jnp.array(rng.normal(size=33), jnp.bfloat16),
    },
    'readout': [jnp.array(rng.normal(size=(3, 4)), jnp.float16), jnp.array(-0.0)],
    'none': None,
  }
  optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, 10))
  opt_state = optimizer.init(params)
  gradients = jax.tree.map(lambda p: p + 1, params)
  _, opt_state = optimizer.update(gradients, opt_state, params)
  return {
    'params': params,
    'opt': opt_state,
    'step': seed,
    'rate': 0.1 * seed,
    'on': np.array([True, False, True]),
    'count': np.int16(seed),
    'nan': jnp.array([np.nan, np.inf, seed]),
  }


def assert_same(found, expected):
  """The same structure, types, dtypes, shapes and bits."""
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected)):
    assert type(a) is type(b), path
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape) == (b.dtype, b.shape), path
    assert a.tobytes() == b.tobytes(), path


def open_checkpointer(path, **changes):
  return Checkpointer(path, **{'identity': IDENTITY, **changes})


def save_steps(path, steps, **changes):
  with open_checkpointer(path, **changes) as checkpointer:
    for step in steps:
      checkpointer.save(step, make_state(step), meta={'epoch': step / 3})


def warnings_in(caplog):
  return [r.getMessage() for r in caplog.records if r.levelname == 'WARNING']


def test_everything_comes_back_bit_by_bit(tmp_path):
  save_steps(tmp_path / 'c', [1, 2])
  with open_checkpointer(tmp_path / 'c') as checkpointer:
    restored = checkpointer.restore(make_state(7))
    assert (restored.step, restored.meta) == (2, {'epoch': 2 / 3})
    assert_same(restored.state, make_state(2))
    shapes = jax.eval_shape(lambda: make_state(7)['params'])
    by_shape = checkpointer.restore(make_state(7) | {'params': shapes})
    assert_same(by_shape.state, make_state(2))


def test_no_checkpoint_is_none_and_reading_leaves_no_trace(tmp_path):
  with open_checkpointer(tmp_path / 'c') as checkpointer:
    assert checkpointer.restore(make_state(0)) is None
  assert not (tmp_path / 'c').exists()


def test_a_path_may_lead_up(tmp_path, monkeypatch):
  (tmp_path / 'here').mkdir()
  monkeypatch.chdir(tmp_path / 'here')
  save_steps('../c', [1])
  with open_checkpointer('../c') as checkpointer:
    assert_same(checkpointer.restore(make_state(7)).state, make_state(1))


def test_plain_orbax_reads_the_state(tmp_path):
  save_steps(tmp_path / 'c', [3])
  with ocp.StandardCheckpointer() as plain:
    state = plain.restore(tmp_path / 'c' / '3' / 'state')
  np.testing.assert_array_equal(
    state['params']['block_0/mlp']['kernel'], make_state(3)['params']['block_0/mlp']['kernel']
  )


def test_the_newest_three_stay_and_steps_may_go_back(tmp_path):
  with open_checkpointer(tmp_path / 'c') as checkpointer:
    for step in (1, 2, 3, 10):
      checkpointer.save(step, {'x': np.arange(step)})
    checkpointer.wait()
    steps = {p.name for p in (tmp_path / 'c').iterdir()}
    assert steps == {'2', '3', '10'}
  with open_checkpointer(tmp_path / 'd') as checkpointer:
    checkpointer.save(5, {'x': np.arange(5)})
    checkpointer.save(4, {'x': np.arange(4)}, wait=True)
    assert (tmp_path / 'd' / '4').is_dir()


def test_buffers_may_be_reused_at_once(tmp_path):
  step = jax.jit(lambda x: x * 1.5 + 1, donate_argnums=0)
  x, y = jnp.zeros((512, 513)), np.zeros((512, 513))
  expected = {}
  with open_checkpointer(tmp_path / 'c', max_to_keep=9) as checkpointer:
    for i in range(6):
      expected[i] = np.array(x)
      checkpointer.save(i, {'x': x, 'y': y})
      donated, x = x, step(x)
      assert donated.is_deleted()
      y += 1
  for i in reversed(range(6)):
    restored = open_checkpointer(tmp_path / 'c').restore({'x': x, 'y': y})
    assert restored.step == i
    assert set(restored.state['y'].flat) == {i}
    np.testing.assert_array_equal(restored.state['x'], expected[i])
    shutil.rmtree(tmp_path / 'c' / str(i))


@pytest.mark.parametrize('spec', [PartitionSpec(), PartitionSpec('data')])
def test_placement_follows_the_template(tmp_path, spec):
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = NamedSharding(mesh, spec)
  value = np.arange(16.0, dtype=np.float32).reshape(8, 2)
  with open_checkpointer(tmp_path / 'c') as checkpointer:
    checkpointer.save(1, {'x': jax.device_put(value, sharding), 'n': jnp.int32(4)}, wait=True)
    for leaf in (
      jax.device_put(np.zeros_like(value), sharding),
      jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding),
    ):
      state = checkpointer.restore({'x': leaf, 'n': jnp.int32(0)}).state
      assert state['x'].sharding == sharding
      assert not state['n'].committed
      # Each device owns or at least never overwrites what it was given.
      step = jax.jit(lambda s: s['x'] * s['n'], donate_argnums=0)
      result = step(state)
      for shard in result.addressable_shards:
        np.testing.assert_array_equal(shard.data, 4 * value[shard.index])


@pytest.mark.parametrize('kind', ['threefry2x32', 'rbg', 'unsafe_rbg'])
def test_prng_keys_are_kept_with_their_kind(tmp_path, kind, caplog):
  keys = {'key': jax.random.key(7, impl=kind), 'raw': jax.random.PRNGKey(7)}
  keys['many'] = jax.random.split(keys['key'], 4)
  mesh = jax.make_mesh((4,), ('data',), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
  spread = jax.device_put(keys['many'], NamedSharding(mesh, PartitionSpec('data')))
  with open_checkpointer(tmp_path / 'c') as checkpointer:
    checkpointer.save(1, keys, wait=True)
    for many in (keys['many'], spread, jax.eval_shape(lambda: keys['many'])):
      state = checkpointer.restore(keys | {'many': many}).state
      assert {name: leaf.dtype for name, leaf in state.items()} == {
        name: leaf.dtype for name, leaf in keys.items()
      }
      for name, leaf in keys.items():
        assert (state[name] == leaf).all()
      if many is spread:
        assert state['many'].sharding == spread.sharding
    another = jax.random.key(7, impl='rbg' if kind != 'rbg' else 'unsafe_rbg')
    with pytest.raises(UserError, match=r"another state: \['key'\]: \"key<\w+>uint32"):
      checkpointer.restore(keys | {'key': another})
    with pytest.raises(UserError, match='another state'):
      checkpointer.restore(keys | {'key': jax.random.key_data(keys['key'])})


def whole_and_resumed(make, tmp_path):
  """Two of what `make()` gives after 4 steps, one by way of a checkpoint after 2."""
  whole, resumed = make(), make()
  whole.run(2)
  with open_checkpointer(tmp_path / 'c') as checkpointer:
    checkpointer.save(2, whole.state, wait=True)
    resumed.state = checkpointer.restore(resumed.state).state
  for each in (whole, resumed):
    each.run(2)
  return whole, resumed


@pytest.mark.parametrize('zero', [False, True])
def test_an_optimizer_with_noise_goes_on_exactly(tmp_path, zero):
  data, model = aj.data.load('tabular:iris', valid=0.0), aj.models.MLP(1, 4, 4, 3)
  recipe = Recipe(model, 'classification', optax.noisy_sgd(0.1, key=0))
  placement = Placement(make_mesh(1, 4, jax.devices()[:2]), zero=zero)

  def trainer():
    sampler = fixed('1', 1)
    return Trainer(recipe, data.train, sampler, batch_size=4, seed=0, placement=placement)

  whole, resumed = whole_and_resumed(trainer, tmp_path)
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), whole.state, resumed.state))
  assert whole.state.opt_state[0].rng_key != recipe.optimizer.init({})[0].rng_key


def test_networks_side_by_side_with_noise_go_on_exactly(tmp_path):
  data, model = aj.data.load('tabular:iris', valid=0.0), aj.models.MLP(1, 4, 4, 3)
  recipe = Recipe(model, 'classification', optax.noisy_sgd(0.1, key=0))
  make = lambda: Fleet(
    recipe, data.train, [range(8), range(8, 16)], batch_size=4, seed=0, sync_every=3,
    devices=jax.devices()[:2], chunk_steps=2,
  )  # fmt: skip
  whole, resumed = whole_and_resumed(make, tmp_path)
  for a, b in zip(whole.members(), resumed.members()):
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), a, b))


def spread(value, count, spec):
  mesh = jax.make_mesh(
    (count,), ('data',), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:count]
  )
  # A copy, which no later change of `value` reaches.
  return jax.device_put(value.copy(), NamedSharding(mesh, spec))


def test_shards_come_back_on_any_devices(tmp_path):
  """Saved as eight shards; read as four columns, on two devices, whole, or by NumPy."""
  value = np.random.default_rng(0).normal(size=(16, 12)).astype(np.float32)
  with open_checkpointer(tmp_path / 'c') as checkpointer:
    checkpointer.save(1, {'x': spread(value, 8, PartitionSpec('data'))}, wait=True)
    body = json.loads((tmp_path / 'c' / '1' / 'meta' / 'metadata').read_text())['body']
    checkpointer.save(2, {'x': value}, wait=True)
    whole = json.loads((tmp_path / 'c' / '2' / 'meta' / 'metadata').read_text())['body']
    assert body['leaves'] == whole['leaves']  # however it was cut
    shutil.rmtree(tmp_path / 'c' / '2')
    for template, shapes in (
      (spread(value, 4, PartitionSpec(None, 'data')), [(16, 3)] * 4),
      (spread(value, 2, PartitionSpec('data')), [(8, 12)] * 2),
      (spread(value, 8, PartitionSpec()), [(16, 12)] * 8),
      (jnp.asarray(value), [(16, 12)]),
    ):
      got = checkpointer.restore({'x': template}).state['x']
      assert got.sharding == template.sharding
      assert [shard.data.shape for shard in got.addressable_shards] == shapes
      np.testing.assert_array_equal(got, value)
    np.testing.assert_array_equal(checkpointer.restore({'x': value}).state['x'], value)


def test_one_bad_number_in_one_shard_is_noticed(tmp_path, caplog):
  """Whatever the shards in which it is read."""
  value = np.arange(96, dtype=np.float32).reshape(16, 6)
  split = spread(value, 8, PartitionSpec('data'))
  with open_checkpointer(tmp_path / 'c') as checkpointer:
    for step in (1, 2):
      checkpointer.save(step, {'x': split, 'y': split}, wait=True)
  value[9, 4] += 1e-5
  shutil.rmtree(tmp_path / 'c' / '2' / 'state')
  with ocp.StandardCheckpointer() as plain:
    plain.save(tmp_path / 'c' / '2' / 'state', {'x': split, 'y': value})
  for template in (split, spread(value, 3, PartitionSpec(None, 'data')), value):
    caplog.clear()
    assert open_checkpointer(tmp_path / 'c').restore({'x': template, 'y': template}).step == 1
    (warning,) = warnings_in(caplog)
    assert "leaf ['y']: not the bytes that were saved" in warning


def save_as_before(path, step, state):
  """A checkpoint in the format of version 0.1: whole arrays, and a CRC-32 for each leaf."""
  host = jax.tree.map(np.array, state)
  leaves = {
    jax.tree_util.keystr(name): {
      'dtype': str(leaf.dtype),
      'shape': list(leaf.shape),
      'crc32': zlib.crc32(leaf.reshape(-1).view(np.uint8)),
    }
    for name, leaf in jax.tree.leaves_with_path(host)
  }
  body = {'step': step, 'identity': IDENTITY, 'meta': {}, 'leaves': leaves}
  crc32 = zlib.crc32(json.dumps(body, sort_keys=True).encode())
  handlers = {
    'state': ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False),
    'meta': ocp.JsonCheckpointHandler(),
  }
  with ocp.CheckpointManager(path, item_handlers=handlers) as manager:
    saved = ocp.args.JsonSave({'body': body, 'crc32': crc32})
    manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(host), meta=saved))


def test_checkpoints_of_an_older_version(tmp_path, caplog):
  """Are read into any layout, their checksums compared, and continued."""
  split = {'x': spread(np.arange(16.0, dtype=np.float32), 8, PartitionSpec('data'))}
  for step in (1, 2):
    save_as_before(tmp_path / 'c', step, make_state(step) | split)
  with open_checkpointer(tmp_path / 'c') as checkpointer:
    restored = checkpointer.restore(make_state(0) | split)
    assert restored.step == 2
    assert restored.state['x'].sharding == split['x'].sharding
    assert_same(restored.state, make_state(2) | split)
    bad = jax.tree.map(np.array, make_state(2) | split)
    bad['x'][3] += 1e-5
    shutil.rmtree(tmp_path / 'c' / '2' / 'state')
    with ocp.StandardCheckpointer() as plain:
      plain.save(tmp_path / 'c' / '2' / 'state', bad)
    assert checkpointer.restore(make_state(0) | split).step == 1
    assert "leaf ['x']: not the bytes that were saved" in warnings_in(caplog)[0]
    checkpointer.save(3, make_state(3) | split, wait=True)
    assert_same(checkpointer.restore(make_state(0) | split).state, make_state(3) | split)


class Fields(NamedTuple):
  params: dict
  step: int


@pytest.mark.parametrize('kind', [Fields, dict], ids=['fields', 'keys'])
def test_a_part_of_a_state(tmp_path, kind):
  state = kind(step=7, params={'b': np.arange(3), 'a.c': np.ones(2)})
  part = kind(step=None, params={'b': np.zeros(3, int), 'a.c': np.zeros(2)})
  with open_checkpointer(tmp_path / 'c') as checkpointer:
    checkpointer.save(1, state, wait=True)
    restored = checkpointer.restore(part, fields=('params',)).state
    assert type(restored) is kind
    assert_same(restored, kind(step=None, params={'b': np.arange(3), 'a.c': np.ones(2)}))
    more = kind(step=None, params={'b': np.zeros(3, int), 'a.c': np.zeros(2), 'd': 1})
    with pytest.raises(UserError, match=r"\['d'\]: absent there.*expected one of this"):
      checkpointer.restore(more, fields=('params',))


@pytest.mark.parametrize('dtype', ['bool', 'int8', 'bfloat16', 'float32', 'float64', 'complex128'])
def test_checksums_of_parts_add_up(dtype):
  random = np.random.default_rng(0)
  numbers = random.normal(size=(5, 6, 3)) * 9
  whole = (numbers > 0 if dtype == 'bool' else numbers).astype(dtype)
  total = 0
  for rows, columns in itertools.product((slice(0, 2), slice(2, 5)), (slice(0, 4), slice(4, 6))):
    total += checksum.of_block(whole[rows, columns], (rows, columns, slice(None)))
  assert total % 2**64 == checksum.of_block(whole)
  swapped = whole[:, [1, 0, 2, 3, 4, 5]]
  assert checksum.of_block(swapped) != checksum.of_block(whole)
  bits = whole.view(np.uint8)
  for place in random.integers(bits.size, size=20):
    bits.reshape(-1)[place] ^= 1 << random.integers(8)
    assert checksum.of_block(whole) != total % 2**64
    total = checksum.of_block(whole)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
  save_steps(tmp_path / 'c', [1])
  other = {'model': 'MLP', 'gates': ['block_0/mlp']}
  with pytest.raises(UserError, match='another model') as raised:
    open_checkpointer(tmp_path / 'c', identity=other).restore(make_state(1))
  message = str(raised.value)
  assert 'gates: ["block_0/mlp", "block_1/mlp"] there, ["block_0/mlp"] here' in message
  assert '\n' not in message


@pytest.mark.parametrize(
  ('change', 'text'),
  [
    ({'on': np.zeros(4, bool)}, r"\['on'\]: \"bool\[3\]\" there, \"bool\[4\]\" here"),
    ({'nan': jnp.zeros(3, jnp.int32)}, r"\['nan'\]: \"float32\[3\]\" there, \"int32\[3\]\" here"),
    ({'more': 1}, r"\['more'\]: absent there, \"int64\[\]\" here"),
  ],
)
def test_another_state_is_refused_by_leaf(tmp_path, change, text):
  save_steps(tmp_path / 'c', [1])
  with pytest.raises(UserError, match=text):
    open_checkpointer(tmp_path / 'c').restore(make_state(1) | change)


@pytest.fixture(scope='module')
def two_steps(tmp_path_factory):
  path = tmp_path_factory.mktemp('two') / 'c'
  save_steps(path, [1, 2])
  return path


def files_of(path):
  return sorted(p.relative_to(path) for p in path.rglob('*') if p.is_file())


def flip(path, position):
  content = bytearray(path.read_bytes())
  content[position] ^= 0x10
  path.write_bytes(content)


@pytest.mark.parametrize('place', [0.0, 0.5, 0.9])
def test_a_flipped_bit_in_any_file_never_gets_through(two_steps, tmp_path, caplog, place):
  """The array data lies in several files; which of them holds a leaf is Orbax's affair."""
  noticed = set()
  for name in files_of(two_steps / '2'):
    copy = tmp_path / 'c'
    shutil.copytree(two_steps, copy)
    flip(copy / '2' / name, int(place * ((copy / '2' / name).stat().st_size - 1)))
    caplog.clear()
    restored = open_checkpointer(copy).restore(make_state(0))
    assert_same(restored.state, make_state(restored.step))
    if restored.step == 1:
      noticed.add('/'.join(name.parts[:2]))
      (warning,) = warnings_in(caplog)
      assert f'{copy}/2 is damaged and skipped: ' in warning
      assert '\n' not in warning
    shutil.rmtree(copy)
  assert 'meta/metadata' in noticed
  assert {'state/d', 'state/ocdbt.process_0'} <= noticed


def test_the_damaged_leaf_is_named(two_steps, tmp_path, caplog):
  """Every value is replaced behind Orbax's back, so that only the checksum can tell."""
  copy = tmp_path / 'c'
  shutil.copytree(two_steps, copy)
  state = jax.tree.map(np.array, make_state(2))
  state['params']['block_0/mlp']['kernel'][5, 6] += 1e-7
  shutil.rmtree(copy / '2' / 'state')
  with ocp.StandardCheckpointer() as plain:
    plain.save(copy / '2' / 'state', state)
  restored = open_checkpointer(copy).restore(make_state(0))
  assert restored.step == 1
  (warning,) = warnings_in(caplog)
  assert "leaf ['params']['block_0/mlp']['kernel']" in warning


def test_a_missing_file_never_gets_through(two_steps, tmp_path, caplog):
  for name in files_of(two_steps / '2'):
    copy = tmp_path / 'c'
    shutil.copytree(two_steps, copy)
    (copy / '2' / name).unlink()
    caplog.clear()
    restored = open_checkpointer(copy).restore(make_state(0))
    assert_same(restored.state, make_state(restored.step))
    if restored.step == 1:
      assert len(warnings_in(caplog)) == 1
    if str(name) in ('meta/metadata', 'state/manifest.ocdbt'):
      assert restored.step == 1
    shutil.rmtree(copy)


def truncate_json(path):
  (path / '2' / 'meta' / 'metadata').write_text('{"body": {"st')


def other_json(path):
  (path / '2' / 'meta' / 'metadata').write_text('[]')


def changed_json(path):
  file = path / '2' / 'meta' / 'metadata'
  stored = json.loads(file.read_text())
  stored['body']['meta']['epoch'] = 17
  file.write_text(json.dumps(stored))


def another_step(path):
  shutil.rmtree(path / '2')
  shutil.copytree(path / '1', path / '2')


def empty_directory(path):
  (path / '5').mkdir()


@pytest.mark.parametrize(
  'damage', [truncate_json, other_json, changed_json, another_step, empty_directory]
)
def test_damage_is_skipped_and_the_step_can_be_saved_again(two_steps, tmp_path, caplog, damage):
  copy = tmp_path / 'c'
  shutil.copytree(two_steps, copy)
  damage(copy)
  bad, sound = (5, 2) if damage is empty_directory else (2, 1)
  with open_checkpointer(copy) as checkpointer:
    restored = checkpointer.restore(make_state(0))
    assert restored.step == sound
    assert_same(restored.state, make_state(sound))
    (warning,) = warnings_in(caplog)
    assert f'{copy}/{bad} is damaged' in warning
    checkpointer.save(bad, make_state(bad), wait=True)
    assert (copy / f'{bad}.damaged').is_dir()
    caplog.clear()
    assert_same(checkpointer.restore(make_state(0)).state, make_state(bad))
    assert not caplog.records
    # Damaged once more: the first one set aside is not in the way.
    shutil.rmtree(copy / str(bad) / 'state')
    assert checkpointer.restore(make_state(0)).step == sound
    checkpointer.save(bad, make_state(bad), wait=True)
    assert (copy / f'{bad}.damaged.1').is_dir()
  assert open_checkpointer(copy).restore(make_state(0)).step == bad


def test_no_sound_checkpoint_is_a_users_affair(tmp_path):
  save_steps(tmp_path / 'c', [1, 2])
  for step in (1, 2):
    shutil.rmtree(tmp_path / 'c' / str(step) / 'state')
  for _ in range(2):
    with pytest.raises(UserError, match=r'damaged \(2, 1\).*start afresh') as raised:
      open_checkpointer(tmp_path / 'c').restore(make_state(0))
    assert str(tmp_path / 'c') in str(raised.value)
    assert '\n' not in str(raised.value)


def test_saving_a_step_again(tmp_path):
  with open_checkpointer(tmp_path / 'c') as checkpointer:
    checkpointer.save(1, {'x': np.arange(3)}, wait=True)
    written = (tmp_path / 'c' / '1').stat().st_ino
    checkpointer.save(1, {'x': np.arange(3)}, wait=True)
    assert (tmp_path / 'c' / '1').stat().st_ino == written
    checkpointer.save(1, {'x': np.arange(3)}, meta={'new': True}, wait=True)
    checkpointer.save(1, {'x': np.arange(4)}, meta={'new': True})
    restored = checkpointer.restore({'x': np.zeros(4, int)})
    assert restored.meta == {'new': True}
    np.testing.assert_array_equal(restored.state['x'], np.arange(4))


@pytest.mark.parametrize(
  ('state', 'text'),
  [
    ({'a': np.ones(2), 'b': np.ones((0, 3))}, r"zero size; found \[\"\['b'\]\"\]"),
    ({'a': None}, 'a state with leaves'),
    ({'a.b': np.ones(1), 'a': {'b': np.ones(1)}}, 'joined by dots'),
  ],
)
def test_a_state_that_cannot_be_saved(tmp_path, state, text):
  with open_checkpointer(tmp_path / 'c') as checkpointer:
    with pytest.raises(ValueError, match=text):
      checkpointer.save(1, state)
    checkpointer.save(1, np.arange(3))
    np.testing.assert_array_equal(checkpointer.restore(np.zeros(3, int)).state, np.arange(3))


class Evil:
  def __reduce__(self):
    return exec, ('open("ran", "w")',)


def test_a_strangers_checkpoint_runs_no_code(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  save_steps(tmp_path / 'c', [1])
  files = [path for path in (tmp_path / 'c').rglob('*') if path.is_file()]
  sound = {path: path.read_bytes() for path in files}
  metadata = json.dumps({'body': {'step': 1, 'leaves': {'evil:Leaf': 'evil:Leaf'}}, 'crc32': 0})
  for path in files:
    for content in (pickle.dumps(Evil()), metadata.encode()):
      path.write_bytes(content)
      with contextlib.suppress(UserError):
        open_checkpointer(tmp_path / 'c').restore(make_state(1))
    path.write_bytes(sound[path])
  assert not (tmp_path / 'ran').exists()


DISKS = {
  'read-only': ('PermissionError(13, "Permission denied")', 'Permission denied'),
  'full': ('ValueError("RESOURCE_EXHAUSTED: [os_error_code=\'28\']")', 'No space left on device'),
  'over quota': ('ValueError("UNKNOWN: [os_error_code=\'122\']")', 'Disk quota exceeded'),
}
FAILING = """
import sys, threading, time
import numpy as np
from orbax.checkpoint._src.path import atomicity
from additive_jax.errors import UserError
from additive_jax.files.checkpoint import Checkpointer

async def create(self):
  raise {error}

checkpoints = Checkpointer(sys.argv[1], identity={{}})
checkpoints.save(1, {{'x': np.ones(3)}}, wait=True)
for name in dir(atomicity):
  kind = getattr(atomicity, name)
  if isinstance(kind, type) and 'create' in vars(kind):
    kind.create = create
try:
  checkpoints.save(2, {{'x': np.ones(3)}}, wait=True)
except UserError as error:
  print(f'error: {{error}}', file=sys.stderr)
"""


@pytest.mark.parametrize('name', DISKS)
def test_a_disk_that_fails_is_one_line_at_once(name, tmp_path):
  """Orbax's own threads wait 300 s for a folder that could not be made, and log tracebacks."""
  error, reason = DISKS[name]
  program = [sys.executable, '-c', FAILING.format(error=error), tmp_path / 'c']
  process = subprocess.run(program, capture_output=True, text=True, timeout=100, check=False)
  assert process.stderr == (
    f'error: cannot write a checkpoint in {tmp_path / "c"} ({reason}); expected a directory that '
    'may be written, with room\n'
  )
  assert open_checkpointer(tmp_path / 'c', identity={}).restore({'x': np.ones(3)}).step == 1


def test_a_folder_that_is_removed_does_not_come_back(tmp_path):
  with open_checkpointer(tmp_path / 'c') as checkpointer:
    checkpointer.save(1, make_state(1), wait=True)
    shutil.rmtree(tmp_path / 'c')
    with pytest.raises(UserError, match='it was removed while it was used'):
      checkpointer.save(2, make_state(2), wait=True)
  assert not (tmp_path / 'c').exists()


def test_older_damage_is_nobodys_concern(tmp_path, caplog):
  save_steps(tmp_path / 'c', [2])
  (tmp_path / 'c' / '1').mkdir()
  with open_checkpointer(tmp_path / 'c') as checkpointer:
    assert checkpointer.restore(make_state(0)).step == 2
    checkpointer.save(3, make_state(3), wait=True)
    assert checkpointer.restore(make_state(0)).step == 3
  assert not caplog.records


def test_a_directory_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=r'cannot write a checkpoint in .*file/c'):
    open_checkpointer(tmp_path / 'file' / 'c').save(1, {'x': np.arange(3)}, wait=True)


SAVER = """
import sys
import numpy as np
from additive_jax.files.checkpoint import Checkpointer

def state(step):
  return {'x': np.random.default_rng(step).normal(size=(8, 50_000)), 'step': step}

checkpointer = Checkpointer(sys.argv[1], identity={})
restored = checkpointer.restore(state(0))
first = 0 if restored is None else restored.step + 1
if restored is not None:
  np.testing.assert_array_equal(restored.state['x'], state(restored.step)['x'])
for step in range(first, 10_000):
  checkpointer.save(step, state(step))
  print(step, flush=True)
"""


def test_kill_at_any_moment(tmp_path):
  """A run is killed in the middle of its saves, continued, and killed again."""
  path = tmp_path / 'c'
  reached = -1
  for _ in range(2):
    process = subprocess.Popen(
      [sys.executable, '-c', SAVER, str(path)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for _ in range(4):
      line = process.stdout.readline()
      assert line, process.stderr.read()
    time.sleep(random.uniform(0, 0.15))
    process.send_signal(signal.SIGKILL)
    # Not `communicate`, which loses what the line reader has read ahead.
    rest, errors = process.stdout.read(), process.stderr.read()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    handed_over = int((line + rest).split()[-1])
    restored = Checkpointer(path, identity={}).restore({'x': np.zeros((8, 50_000)), 'step': 0})
    # The last save handed over may have been under way, and one more may have been whole but for
    # the line that says so.
    assert handed_over - 1 <= restored.step <= handed_over + 1
    assert restored.step > reached
    assert restored.state['step'] == restored.step
    expected = np.random.default_rng(restored.step).normal(size=(8, 50_000))
    np.testing.assert_array_equal(restored.state['x'], expected)
    reached = restored.step


PROCESS = """
import logging
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec as P

rank, port, path = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
logging.basicConfig(format='%(message)s')
jax.distributed.initialize(f'localhost:{port}', 2, rank)
multihost_utils.sync_global_devices('warm')
from additive_jax.files.checkpoint import Checkpointer
from additive_jax.errors import UserError

gathered, gather = [], multihost_utils.process_allgather

def count(tree, **options):
  gathered.append(sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree)))
  return gather(tree, **options)

multihost_utils.process_allgather = count
mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
value = np.random.default_rng(0).normal(size=(8, 512)).astype(np.float32)

def put(value, spec):
  sharding = NamedSharding(mesh, spec)
  return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

def state(step):
  return {'pool': put(value + step, P()), 'shards': put(value * step, P('data')), 'step': step}

step_fn = jax.jit(lambda s: s['pool'] + 1, donate_argnums=0)
checkpointer = Checkpointer(path, identity={'model': 'MLP'})
assert checkpointer.restore(state(0)) is None
for step in (1, 2, 3):
  current = state(step)
  checkpointer.save(step, current, meta={'rank': rank})
  step_fn(current)
checkpointer.save(3, state(3), meta={'rank': rank})
checkpointer.close()
multihost_utils.sync_global_devices('saved')
if rank == 0:
  shutil.rmtree(path / '3' / 'state')
multihost_utils.sync_global_devices('damaged')
checkpointer = Checkpointer(path, identity={'model': 'MLP'})
restored = checkpointer.restore(state(0))
assert restored.step == 2 and restored.meta == {'rank': 0}, restored
for name, expected in (('pool', value + 2), ('shards', value * 2)):
  assert restored.state[name].sharding == state(0)[name].sharding
  for shard in restored.state[name].addressable_shards:
    np.testing.assert_array_equal(shard.data, expected[shard.index])
# Split along the other axis, and whole: each process reads what it holds then.
other = {'pool': put(value, P('data')), 'shards': put(value, P(None, 'data')), 'step': 0}
restored = checkpointer.restore(other)
for name, expected in (('pool', value + 2), ('shards', value * 2)):
  assert restored.state[name].sharding == other[name].sharding
  for shard in restored.state[name].addressable_shards:
    np.testing.assert_array_equal(shard.data, expected[shard.index])
assert restored.state['step'] == 2
assert 0 < max(gathered) < 100, 'checksums and flags, never a state'
checkpointer.save(3, state(3), wait=True)
assert checkpointer.restore(state(0)).step == 3
checkpointer.close()
try:
  Checkpointer(path, identity={'model': 'CNN'}).restore(state(0))
except UserError as error:
  assert 'model: "MLP" there, "CNN" here' in str(error)
else:
  raise AssertionError
multihost_utils.sync_global_devices('end')
print('sound', flush=True)
"""


@pytest.mark.slow
def test_two_processes_save_and_restore_together(tmp_path):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  flags = '--xla_force_host_platform_device_count=2'
  runs = [
    subprocess.Popen(
      [sys.executable, '-c', PROCESS, str(rank), str(port), str(tmp_path / 'c')],
      env=os.environ | {'XLA_FLAGS': flags},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for rank in range(2)
  ]
  try:
    outputs = [run.communicate(timeout=120) for run in runs]
  finally:
    for run in runs:
      run.kill()
  for run, (output, errors) in zip(runs, outputs):
    assert run.returncode == 0, errors
    assert output.endswith('sound\n')
  assert [errors.count('is damaged and skipped') for _, errors in outputs] == [2, 0]
  names = {p.name for p in Path(tmp_path / 'c').iterdir()}
  assert names == {'1', '2', '3', '3.damaged'}
  for rank in range(2):  # half of the shards each
    folder = tmp_path / 'c' / '2' / 'state' / f'ocdbt.process_{rank}'
    assert sum(file.stat().st_size for file in folder.rglob('*')) > 512 * 4 * 3
