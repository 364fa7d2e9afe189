"""What comes of damaged files: the same tables, or one line that names the file.

`damaged_runs` tries more of them.
"""

import json
import logging
import pickle
import random

import damaged_runs
import numpy as np
import pytest
import studies
import tiny

from additive_jax.errors import UserError
from additive_jax.experiments.records import Records
from additive_jax.files.arrays import load_arrays, save_arrays
from additive_jax.files.journal import Journal
from additive_jax.files.rundir import RunDir
from additive_jax.files.seal import DamagedError, parsed
from additive_jax.models import MLP
from additive_jax.search.generations import Generations


@pytest.fixture(autouse=True)
def said(monkeypatch):
  monkeypatch.setattr(logging.getLogger('additive_jax'), 'propagate', True)


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
  """A finished run, and how to go on with it."""
  _, workdir = studies.finished('cotrain', tmp_path_factory)
  with studies.programs(tiny.programs(tmp_path_factory)):
    yield workdir, damaged_runs.goes_on('cotrain', damaged_runs.tables(workdir))


@pytest.mark.parametrize('name', ['structures.csv', 'summary.json', 'report.html', 'config.json'])
def test_a_damaged_file_of_a_finished_run(name, sound):
  source, act = sound
  damage = damaged_runs.another_digit
  outcome = damaged_runs.attempt(source, source.joinpath(name).relative_to(source), damage, act,
                                 random.Random(1))  # fmt: skip
  assert outcome.kind == ('one line' if name == 'config.json' else 'same'), outcome


# A digit that changed, lines that are cut off, come twice and are gone: one of each way to notice.
HALF = [
  pytest.param(
    name,
    damage,
    id=f'{name}-{damage.__name__}',
    marks=pytest.mark.slow if damage in usual else pytest.mark.thorough,
  )
  for name, usual in {
    'journals/cotrain.jsonl': (damaged_runs.cut_off, damaged_runs.line_again),
    'metrics.jsonl': (damaged_runs.without_line,),
  }.items()
  for damage in damaged_runs.DAMAGES
]


@pytest.mark.parametrize(('name', 'damage'), HALF)
def test_a_damaged_file_of_half_a_run(name, damage, sound, tmp_path):
  source, act = sound
  damaged_runs.half(source, tmp_path / 'half', 'cotrain')
  path = (tmp_path / 'half' / name).relative_to(tmp_path / 'half')
  outcome = damaged_runs.attempt(tmp_path / 'half', path, damage, act, random.Random(1))
  assert outcome.good, outcome


def test_a_changed_digit_in_the_journal_of_half_a_run(sound, tmp_path):
  source, act = sound
  damaged_runs.half(source, tmp_path / 'half', 'cotrain')
  path = (source / 'journals' / 'cotrain.jsonl').relative_to(source)
  rng = random.Random(1)
  outcome = damaged_runs.attempt(tmp_path / 'half', path, damaged_runs.another_digit, act, rng)
  assert outcome.kind == 'same', outcome


@pytest.mark.slow
@pytest.mark.parametrize(
  'name', ['metrics.jsonl', pytest.param('journals/seconds.jsonl', marks=pytest.mark.thorough)]
)
def test_lost_points_that_tables_are_made_of_are_trained_again(
  name, tmp_path_factory, tmp_path, caplog
):
  _, source = studies.finished('booster', tmp_path_factory)
  damaged_runs.half(source, tmp_path / 'half', 'booster')
  path = tmp_path / 'half' / name
  lines = path.read_bytes().splitlines(keepends=True)
  point = {'tag': 'scratch-seed0', 'step': 8}
  left = [line for line in lines if not point.items() <= json.loads(line).items()]
  assert len(left) == len(lines) - 1
  path.write_bytes(b''.join(left))
  with studies.programs(tmp_path_factory.getbasetemp() / 'programs'):
    studies.run('booster', tmp_path / 'half')
  assert f'{path} lacks step 8 of scratch-seed0; it is trained again from there' in caplog.text
  assert damaged_runs.tables(tmp_path / 'half') == damaged_runs.tables(source)


def test_of_two_lines_for_one_arm_the_first_counts(tmp_path, caplog):
  rundir = RunDir.open(tmp_path / 'run', {})
  journal = Journal(rundir.journals / 'sweep.jsonl')
  for loss in (0.1, 0.2):
    journal.append({'seed': 0, 'variant': 'pool', 'loss': loss})
  records = Records(rundir, 'sweep', [0])
  assert records['pool'][0]['loss'] == 0.1
  assert 'sweep.jsonl: a second line for pool, seed 0; the first one counts' in caplog.text
  records.forget('pool', 0)
  assert records.get('pool', 0) is None


def test_a_damaged_record_is_as_none(tmp_path, caplog):
  rundir = RunDir.open(tmp_path / 'run', {})
  journal = Journal(rundir.journals / 'sweep.jsonl')
  for seed in (0, 1):
    journal.append({'seed': seed, 'variant': 'pool', 'loss': 0.1})
  journal.path.write_bytes(journal.path.read_bytes().replace(b'"seed": 0', b'"seed": 2'))
  records = Records(rundir, 'sweep', [0, 1, 2])
  assert [records.get('pool', seed) is None for seed in (0, 1, 2)] == [True, False, True]
  assert 'sweep.jsonl, line 1: damaged' in caplog.text
  journal.path.write_bytes(b'{"loss": 1}\n')
  with pytest.raises(UserError, match=r'sweep\.jsonl: a line without seed'):
    records.read()


SPACE = MLP(2, 4, 4, 2).space


def test_a_search_goes_on_from_before_a_damaged_line(tmp_path):
  journal = Journal(tmp_path / 'search.jsonl')
  for structure in ('00', '01', '10'):
    journal.append({'structures': [structure], 'loss': [[0.5]], 'accuracy': [[0.5]]})
  whole = journal.path.read_bytes()
  journal.path.write_bytes(whole.replace(b'"01"', b'"11"'))
  assert Generations(journal, SPACE).means().bits.tolist() == [[False, False]]
  journal.path.write_bytes(whole + whole.splitlines(keepends=True)[1])
  with pytest.raises(UserError, match=r'search\.jsonl: structure 01 occurs twice'):
    Generations(journal, SPACE)


def test_arrays_come_back_or_are_named_damaged(tmp_path):
  path = tmp_path / 'a.npz'
  arrays = {'labels': np.arange(5), 'inertia': np.float32(0.5), 'centers': np.ones((2, 3))}
  save_arrays(path, arrays)
  found = load_arrays(path)
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], array, strict=True)
  whole, rng = path.read_bytes(), random.Random(0)
  for damage in damaged_runs.DAMAGES:
    for _ in range(20):
      path.write_bytes(damage(whole, rng))
      try:
        again = load_arrays(path)
      except DamagedError:
        continue
      for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array, strict=True)
  np.savez(path, **arrays)  # as an earlier version did
  assert load_arrays(path).keys() == arrays.keys()


class Evil:
  def __reduce__(self):
    return exec, ('open("ran", "w")',)


def test_a_strangers_arrays_run_no_code(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  np.savez(tmp_path / 'a.npz', labels=np.array([Evil()], object))
  (tmp_path / 'b.npz').write_bytes(pickle.dumps(Evil()))
  for name in ('a.npz', 'b.npz'):
    with pytest.raises(DamagedError, match=r'pickle'):
      load_arrays(tmp_path / name)
  assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
  'text', ['', '[]', '{', '[' * 10**5, '{"a": ' * 10**5, '\xff', '1' * 10**5]
)
def test_what_is_no_object_is_damaged(text):
  with pytest.raises(DamagedError):
    parsed(text.encode('latin-1'))


def test_objects_of_others_are_read_as_they_are():
  assert parsed(json.dumps({'a': 1})) == ({'a': 1}, False)
