"""Meshes, collectives and worker threads."""

import gc
import logging
import threading
import time
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from additive_jax import UserError
from additive_jax.parallel import collectives, processes, workers
from additive_jax.parallel import mesh as mesh_


@pytest.mark.parametrize(
  ('num_structures', 'batch_size', 'devices', 'shape'),
  [
    (1, 64, 1, (1, 1)),
    (1, 64, 8, (1, 8)),
    (8, 64, 8, (8, 1)),
    (4, 64, 8, (4, 2)),
    (16, 64, 8, (8, 1)),
    (2, 64, 8, (2, 4)),
    (6, 64, 8, (2, 4)),
    (4, 9, 6, (2, 3)),
    (3, 64, 8, (1, 8)),
    (3, 7, 8, (1, 7)),
    (3, 5, 8, (1, 5)),
    (5, 1, 8, (5, 1)),
    (7, 11, 4, (1, 1)),
  ],
)
def test_make_mesh(num_structures, batch_size, devices, shape):
  """As many devices as can be, then as long a structure axis as can be."""
  mesh = mesh_.make_mesh(num_structures, batch_size, jax.devices()[:devices])
  assert mesh.axis_names == ('structure', 'data')
  assert (mesh.shape['structure'], mesh.shape['data']) == shape
  assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
  ('num_structures', 'batch_size', 'devices', 'experts', 'shape'),
  [
    (4, 64, 8, 2, (4, 1, 2)),
    (2, 64, 8, 2, (2, 2, 2)),
    (4, 64, 8, 8, (1, 1, 8)),
    (3, 5, 4, 2, (1, 1, 2)),
  ],
)
def test_mesh_with_experts(num_structures, batch_size, devices, experts, shape):
  devices = jax.devices()[:devices]
  mesh = mesh_.make_mesh(num_structures, batch_size, devices, expert_devices=experts)
  assert dict(mesh.shape) == dict(zip(('structure', 'data', 'expert'), shape))
  assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize('count', [0, 3, 16])
def test_experts_that_do_not_divide_the_devices(count):
  with pytest.raises(UserError, match=f'expert_devices {count} on 8 devices: expected a number'):
    mesh_.make_mesh(4, 64, jax.devices(), expert_devices=count)


def test_idle_devices_are_logged(caplog):
  with caplog.at_level(logging.WARNING, logger='additive_jax'):
    mesh_.make_mesh(4, 64, jax.devices()[:4])
    assert not caplog.messages
    mesh_.make_mesh(5, 1, jax.devices()[:8])
  assert caplog.messages == [
    '5 of 8 devices are used: 5 structures a step and a batch of 1 parts allow no more'
  ]


LENGTHS = (1, 5, 16, 17)


def over(devices, function, **keywords):
  """`function` on `devices` devices, each with its own rows of the arguments."""
  mesh = mesh_.make_mesh(devices, 1, jax.devices()[:devices])
  rows = PartitionSpec('structure')
  return jax.jit(
    jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False, **keywords)
  )


@pytest.mark.parametrize('devices', [1, 2, 3, 8])
def test_ring_is_psum(devices):
  random = np.random.default_rng(devices)
  vectors = [random.normal(size=(devices, n)).astype(np.float32) for n in LENGTHS]

  def both(*vectors):
    ring = [collectives.ring_all_reduce(v[0], 'structure')[None] for v in vectors]
    return ring, [jax.lax.psum(v, 'structure') for v in vectors]

  program = over(devices, both)
  ring, psum = program(*vectors)
  for got, other, vector in zip(ring, psum, vectors):
    want = np.tile(vector.sum(0, dtype=np.float64), (devices, 1))
    # A float32 sum of at most eight numbers, in another order.
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got, other, rtol=1e-5, atol=1e-6)
    for row in np.asarray(got):
      np.testing.assert_array_equal(row, got[0])  # bitwise the same on every device


def test_ring_moves_pieces_around():
  """2·(P−1) sends of one piece of N/P numbers, no reduction by anyone else."""
  program = over(4, lambda v: collectives.ring_all_reduce(v[0], 'structure')[None])
  text = program.lower(jnp.zeros((4, 20))).as_text()
  assert text.count('collective_permute') == 6
  assert 'all_reduce' not in text
  assert '(tensor<5xf32>) -> tensor<5xf32>' in text
  psum = over(4, lambda v: jax.lax.psum(v, 'structure')).lower(jnp.zeros((4, 20))).as_text()
  assert 'all_reduce' in psum
  assert 'collective_permute' not in psum


@pytest.mark.parametrize('collective', collectives.COLLECTIVES)
def test_trees_are_summed_over_both_axes(collective):
  mesh = mesh_.make_mesh(2, 2, jax.devices()[:4])
  tree = {'a': np.arange(12.0, dtype=np.float32).reshape(2, 2, 3), 'b': np.ones((2, 2), np.int32)}

  def total(tree):
    own = jax.tree.map(lambda leaf: leaf[0, 0], tree)
    return collectives.all_reduce_sum(own, mesh.axis_names, collective)

  spec = PartitionSpec('structure', 'data')
  program = jax.shard_map(
    total, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=False
  )
  got = jax.jit(program)(tree)
  np.testing.assert_array_equal(got['a'], tree['a'].sum((0, 1)))  # small whole numbers: exact
  assert got['b'] == 4
  assert got['b'].dtype == jnp.int32


@pytest.mark.parametrize('collective', collectives.COLLECTIVES)
def test_a_split_leaf_is_summed_over_the_other_axes(collective):
  mesh = mesh_.make_mesh(2, 1, jax.devices()[:4], expert_devices=2)
  specs = {'whole': PartitionSpec(), 'split': PartitionSpec(None, 'expert')}
  tree = {'whole': np.arange(4.0).reshape(2, 2, 1), 'split': np.arange(4.0).reshape(2, 2, 1)}

  def total(tree):
    own = jax.tree.map(lambda leaf: leaf[0], tree)
    return collectives.all_reduce_sum(own, ('structure', 'expert'), collective, specs)

  program = jax.shard_map(
    total,
    mesh=mesh,
    in_specs=PartitionSpec('structure', 'expert'),
    out_specs={'whole': PartitionSpec(), 'split': PartitionSpec('expert')},
    check_vma=False,
  )
  got = jax.jit(program)(tree)
  np.testing.assert_array_equal(got['whole'], [[6]])
  np.testing.assert_array_equal(got['split'], [[2], [4]])


def test_no_axes_no_sum():
  tree = {'a': jnp.ones(3)}
  assert collectives.all_reduce_sum(tree, (), 'ring') is tree


def test_replicate_copies():
  mesh = mesh_.make_mesh(2, 1, jax.devices()[:2])
  source = {'a': jnp.arange(3.0), 'b': np.float32(2)}
  copy = mesh_.replicate(source, mesh)
  assert copy['a'].sharding.is_fully_replicated
  assert len(copy['a'].addressable_shards) == 2
  double = jax.jit(lambda tree: jax.tree.map(lambda leaf: 2 * leaf, tree), donate_argnums=0)
  np.testing.assert_array_equal(double(copy)['a'], [0, 2, 4])
  np.testing.assert_array_equal(source['a'], [0, 1, 2])
  assert source['b'] == 2


def test_place_by_a_tree_of_specs():
  mesh = mesh_.make_mesh(2, 1, jax.devices()[:2])
  tree = {'a': np.arange(4), 'b': np.arange(4)}
  placed = mesh_.place(tree, mesh, {'a': PartitionSpec('structure'), 'b': PartitionSpec()})
  assert placed['a'].addressable_shards[1].data.tolist() == [2, 3]
  assert placed['b'].sharding.is_fully_replicated
  np.testing.assert_array_equal(processes.to_host(placed)['a'], tree['a'])


def test_place_splits_rows():
  mesh = mesh_.make_mesh(2, 2, jax.devices()[:4])
  rows = np.arange(24).reshape(3, 2, 4)
  placed = mesh_.place(rows, mesh, PartitionSpec(None, 'structure', 'data'))
  np.testing.assert_array_equal(placed, rows)
  assert {shard.data.shape for shard in placed.addressable_shards} == {(3, 1, 2)}
  host = processes.to_host(placed)
  assert type(host) is np.ndarray
  host[:] = 0  # a copy of its own
  np.testing.assert_array_equal(placed, rows)


def test_workers():
  local = jax.local_devices()
  assert workers.workers(local[:3]) == local[:3]
  default = workers.workers()
  assert set(default) == {local[0]}  # CPU: one device, a thread for each core
  assert len(default) >= 1


def test_spread_runs_every_job_once_on_an_idle_device():
  devices = jax.devices()[:3]
  busy, most, lock = set(), [], threading.Lock()

  def run(job, device):
    with lock:
      assert device not in busy
      busy.add(device)
      most.append(len(busy))
    time.sleep(0.002)
    with lock:
      busy.remove(device)
    return job * job

  results = dict(workers.spread(range(20), run, devices))
  assert results == {job: job * job for job in range(20)}
  assert max(most) == 3


def test_spread_gives_results_as_they_end():
  first = threading.Event()

  def run(job, device):
    if job == 'slow':
      assert first.wait(60)
    return job

  ended = workers.spread(['slow', 'quick'], run, jax.devices()[:2])
  assert next(ended) == ('quick', 'quick')
  first.set()
  assert list(ended) == [('slow', 'slow')]


def test_spread_passes_errors_on_and_stops():
  started = []

  def run(job, device):
    started.append(job)
    if job == 1:
      raise UserError('job 1: expected another')
    time.sleep(0.002)

  with pytest.raises(UserError, match='job 1'):
    list(workers.spread(range(500), run, jax.devices()[:1]))
  assert len(started) < 500


def test_spread_keeps_no_result():
  class Result:
    pass

  seen = []
  for _, result in workers.spread(range(6), lambda job, device: Result(), jax.devices()[:1]):
    gc.collect()
    assert not any(ref() for ref in seen)
    seen.append(weakref.ref(result))
    del result
  assert len(seen) == 6


def test_one_process_agrees_with_itself():
  assert processes.is_primary()
  assert processes.agree(True) is True
  assert processes.agree(False) is False
  processes.barrier('alone')
  with processes.distributed('', 1, 0):
    assert jax.process_count() == 1
