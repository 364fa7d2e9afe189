"""A training is stopped between two points of its curves, and ends as if it had not been."""

import json

import jax
import numpy as np
import pytest
import tiny

from additive_jax.errors import Stopped
from additive_jax.experiments import pending
from additive_jax.experiments.arms import Arm, full_network
from additive_jax.experiments.fit import Curves, lost_points
from additive_jax.experiments.study import Study
from additive_jax.files.journal import Journal
from additive_jax.files.signals import Stopper


@pytest.fixture(scope='module', autouse=True)
def programs(tmp_path_factory):
  with tiny.cached_programs(tmp_path_factory.mktemp('programs')):
    yield


def trained(path):
  """The pool after 15 steps, and the lines of the curves."""
  pools = []

  def judge(one):
    pools.append(one.variables)
    return full_network(one)

  def stages(session, records):
    del records
    clock = Journal(session.rundir.journals / 'clock.jsonl')
    parts = session, session.training.recipe(15), session.training.sampler(15), 15
    yield [Arm('pool', *parts, judge=judge, curves=Curves(clock=clock))]

  options = {'num_seeds': 1, 'train.batch_size': 4, 'train.checkpoint_every': 100}
  Study('own', stages).run(tiny.config('sweep', options), path, devices=1)
  return pools[0], (path / 'metrics.jsonl').read_bytes()


def test_a_stop_between_two_points(tmp_path, monkeypatch):
  """Of five steps each: it is heard after any step, and changes no number."""
  pool, curves = trained(tmp_path / 'whole')
  monkeypatch.setattr(pending, 'STEPS_SECONDS', 0.0)
  looks = []
  for stops in (4, 5):  # at step 3, and at step 3 + 4
    looks.clear()
    monkeypatch.setattr(
      Stopper, 'stop_requested', property(lambda _, n=stops: looks.append(1) or len(looks) >= n)
    )
    with pytest.raises(Stopped, match=f'saved up to step {3 if stops == 4 else 7} of 15 of pool-'):
      trained(tmp_path / 'stopped')
  lines = (tmp_path / 'stopped' / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [5]
  monkeypatch.undo()
  again, same = trained(tmp_path / 'stopped')
  assert same == curves
  jax.tree.map(np.testing.assert_array_equal, again, pool)
  clock = Journal(tmp_path / 'stopped' / 'journals' / 'clock.jsonl').records()
  assert not lost_points([line['step'] for line in clock], 15, 5)
