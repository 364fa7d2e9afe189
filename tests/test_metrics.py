"""Curves: lines and TensorBoard events, resumed, truncated, and written by several shards."""

import json
import math
import time

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from additive_jax.files import events, seal
from additive_jax.files.metrics import Metrics
from additive_jax.files.rundir import RunDir

CONFIG = {'lr': 1e-3, 'shard': ''}


def tensorboard_events(folder):
  """[(step, {name: value}, purging)] of all event files in `folder`, in the order written."""
  events = []
  for path in sorted(folder.glob('events*'), key=lambda p: p.suffix):
    content = path.read_bytes()
    while content:
      length = int.from_bytes(content[:8], 'little')
      assert int.from_bytes(content[8:12], 'little') == masked_crc32c(content[:8])
      event = Event.FromString(content[12 : 12 + length])
      content = content[16 + length :]
      values = {v.tag: v.simple_value for v in event.summary.value}
      if values or event.HasField('session_log'):
        events.append((event.step, values, event.HasField('session_log')))
  return events


def test_metrics_lines_and_events(tmp_path):
  run = RunDir.open(tmp_path / 'a', CONFIG)
  assert Metrics.read(run.path).empty
  with Metrics(run) as metrics:
    metrics.write(1, {'loss': jnp.float32(0.5), 'structure': '1011'})
    metrics.write(2, {'loss': math.inf, 'skipped': np.int32(3)})
    metrics.write(1, {'accuracy': 0.25}, tag='eval')
    # Seen before the files are closed: a kill loses no more than a few seconds of the curves.
    deadline = time.monotonic() + 10
    while len(tensorboard_events(run.path / 'tensorboard' / 'train')) < 2:
      assert time.monotonic() < deadline
      time.sleep(0.05)
    with pytest.raises(ValueError, match='step and tag'):
      metrics.write(1, {'step': 3})
  lines = [json.loads(line) for line in (run.path / 'metrics.jsonl').read_text().splitlines()]
  assert [seal.crc({k: v for k, v in line.items() if k != 'crc'}) for line in lines] == [
    line.pop('crc') for line in lines
  ]
  assert lines == [
    {'step': 1, 'tag': 'train', 'loss': 0.5, 'structure': '1011'},
    {'step': 2, 'tag': 'train', 'loss': math.inf, 'skipped': 3},
    {'step': 1, 'tag': 'eval', 'accuracy': 0.25},
  ]
  frame = Metrics.read(run.path)
  assert frame['tag'].tolist() == ['train', 'train', 'eval']
  assert frame['loss'].tolist()[:2] == [0.5, math.inf]
  assert math.isnan(frame['loss'][2])
  pd.testing.assert_frame_equal(Metrics.read(run.path / 'metrics.jsonl'), frame)
  assert tensorboard_events(run.path / 'tensorboard' / 'train') == [
    (1, {'loss': 0.5}, False),
    (2, {'skipped': 3.0}, False),
  ]


def test_a_resumed_run_leaves_the_metrics_of_an_uninterrupted_one(tmp_path):
  def write(metrics, steps):
    for step in steps:
      metrics.write(step, {'loss': 1 / step})
      metrics.write(step, {'accuracy': step / 7}, tag='eval')

  whole = RunDir.open(tmp_path / 'whole', CONFIG)
  with Metrics(whole) as metrics:
    write(metrics, range(1, 7))
  broken = RunDir.open(tmp_path / 'broken', CONFIG)
  with Metrics(broken) as metrics:
    write(metrics, range(1, 6))
  # Killed in the middle of a line.
  with open(broken.path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 6, "ta')
  with Metrics(broken) as metrics:
    for tag in ('train', 'eval'):
      metrics.truncate(tag, 3)
    write(metrics, range(4, 7))
  name = 'metrics.jsonl'
  assert (broken.path / name).read_bytes() == (whole.path / name).read_bytes()
  events = tensorboard_events(broken.path / 'tensorboard' / 'train')
  assert [step for step, *_ in events] == [1, 2, 3, 4, 5, 4, 4, 5, 6]
  assert [step for step, _, purging in events if purging] == [4]


def test_one_tag_can_be_truncated_alone(tmp_path):
  run = RunDir.open(tmp_path / 'a', CONFIG)
  with Metrics(run) as metrics:
    for step in (1, 2, 3):
      metrics.write(step, {'loss': 1.0}, tag='alone/3')
      metrics.write(step, {'loss': 1.0}, tag='cotrain')
    metrics.truncate('cotrain', 1)
    metrics.write(2, {'loss': 2.0}, tag='cotrain')
  frame = Metrics.read(run.path)
  assert frame[frame.tag == 'alone/3'].step.tolist() == [1, 2, 3]
  assert frame[frame.tag == 'cotrain'].step.tolist() == [1, 2]
  assert not any(p for *_, p in tensorboard_events(run.path / 'tensorboard' / 'alone' / '3'))
  assert any(p for *_, p in tensorboard_events(run.path / 'tensorboard' / 'cotrain'))


def test_the_other_processes_write_nothing(tmp_path):
  run = RunDir.open(tmp_path / 'a', CONFIG)
  files = sorted(p.name for p in run.path.iterdir())
  with Metrics(RunDir(run.path, primary=False)) as metrics:
    metrics.write(1, {'loss': 1.0})
    metrics.truncate('train', 0)
  assert sorted(p.name for p in run.path.iterdir()) == files


def write(run, seeds, steps, *shard, truncate=None):
  with Metrics(run, shard=shard[0], num_shards=shard[1]) if shard else Metrics(run) as metrics:
    for seed in seeds:
      if truncate is not None:
        metrics.truncate(f'seed{seed}', truncate)
      for step in steps:
        metrics.write(step, {'loss': 1 / (seed + step)}, f'seed{seed}')


def test_shards_write_files_of_their_own_that_read_as_one_run(tmp_path):
  whole = RunDir.open(tmp_path / 'whole', CONFIG)
  write(whole, range(12), (5, 10))
  want = Metrics.read(whole.path)
  for order in ((0, 1, 2), (2, 0, 1)):
    run = RunDir.open(tmp_path / str(order[0]), CONFIG)
    for shard in order:
      write(run, range(shard, 12, 3), (5, 10), shard, 3)
    names = sorted(path.name for path in run.path.glob('metrics*'))
    assert names == [f'metrics-{shard}-of-3.jsonl' for shard in range(3)]
    pd.testing.assert_frame_equal(Metrics.read(run.path), want, check_exact=True)


def test_the_whole_run_goes_on_with_what_a_shard_began(tmp_path):
  whole, run = (RunDir.open(tmp_path / name, CONFIG) for name in ('whole', 'run'))
  write(whole, range(2), (5, 10, 15))
  write(run, [0], (5, 10, 15), 0, 2)
  write(run, [1], (5, 10), 1, 2)
  write(run, [1], (10, 15), truncate=5)
  frame = Metrics.read(run.path)
  pd.testing.assert_frame_equal(frame, Metrics.read(whole.path), check_exact=True)


def test_a_full_disk_ends_the_events_and_not_the_run(tmp_path, caplog, monkeypatch):
  """Every write to a device that is always full fails: told once, and nothing waits."""
  run = RunDir.open(tmp_path / 'a', CONFIG)

  class Full(events.RecordWriter):
    def __init__(self, path):
      super().__init__('/dev/full')

  monkeypatch.setattr(events, 'RecordWriter', Full)
  with Metrics(run) as metrics:
    for step in range(50):
      metrics.write(step, {'loss': 1.0}, tag=f'seed{step % 2}')
  assert len(Metrics.read(run.path)) == 50
  (record,) = caplog.records
  assert record.message == (
    f'{run.path / "tensorboard"}: no more TensorBoard events (No space left on device);'
    ' the run goes on'
  )
