"""Journals lose at most the line that was being written, and give back exactly what was put in."""

import json
import math
import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from additive_jax.errors import UserError
from additive_jax.files import temporaries
from additive_jax.files.journal import Journal, read_all, replace_file, to_plain

WRITER = """
import sys
from additive_jax.files.journal import Journal
journal = Journal(sys.argv[1])
first = len(journal.records())
for i in range(first, 10**6):
  journal.append({'i': i, 'text': 'x' * (i % 50) * 400})
  print(i, flush=True)
"""


def test_records_come_back_exactly(tmp_path):
  journal = Journal(tmp_path / 'deep' / 'a.jsonl')
  assert journal.records() == []
  floats = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, math.inf, -math.inf]
  journal.append({'structure': '0110', 'floats': floats, 'nothing': None, 'nested': {'a': [1, 2]}})
  journal.append({'nan': math.nan})
  first, second = journal.records()
  assert first == {
    'structure': '0110',
    'floats': floats,
    'nothing': None,
    'nested': {'a': [1, 2]},
  }
  assert math.copysign(1, first['floats'][4]) == -1
  assert math.isnan(second['nan'])


@pytest.mark.parametrize(
  ('value', 'plain'),
  [
    (np.float32(0.1), 0.10000000149011612),
    (np.float64(0.1), 0.1),
    (np.int64(2**60), 2**60),
    (np.bool_(True), True),
    (jnp.float32(0.1), 0.10000000149011612),
    (jnp.bfloat16(0.1), 0.10009765625),
    (jnp.arange(3), [0, 1, 2]),
    (np.ones((2, 1), jnp.bfloat16), [[1.0], [1.0]]),
    ((1, 'a'), [1, 'a']),
  ],
)
def test_numpy_and_jax_values_become_plain_ones(tmp_path, value, plain):
  journal = Journal(tmp_path / 'a.jsonl')
  journal.append({'value': value})
  (record,) = journal.records()
  assert record == {'value': plain}
  assert type(record['value']) is type(plain)


@pytest.mark.parametrize('value', [object(), np.complex64(1j), {1, 2}])
def test_values_without_a_form_in_json_are_refused(tmp_path, value):
  with pytest.raises(TypeError, match='has no form in JSON'):
    Journal(tmp_path / 'a.jsonl').append({'value': value})
  assert not (tmp_path / 'a.jsonl').exists()


def test_a_line_torn_at_any_byte_is_dropped_and_cut_off(tmp_path):
  path = tmp_path / 'a.jsonl'
  journal = Journal(path)
  journal.append({'i': 0})
  whole = path.read_bytes()
  journal.append({'i': 1, 'text': 'naïve'})
  full = path.read_bytes()
  for length in range(len(whole), len(full)):
    path.write_bytes(full[:length])
    assert journal.records() == [{'i': 0}]
    journal.append({'i': 2})
    assert journal.records() == [{'i': 0}, {'i': 2}]


def test_a_file_of_one_torn_line_starts_afresh(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"i": ')
  journal = Journal(path)
  assert journal.records() == []
  journal.append({'i': 0})
  assert journal.records() == [{'i': 0}]


@pytest.mark.parametrize('damage', [b'{"i": 1', b'\0\0\0', b'', b'17', b'\xff{}'])
def test_a_damaged_line_in_the_middle_is_named(tmp_path, damage):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"i": 0}\n' + damage + b'\n{"i": 2}\n')
  with pytest.raises(UserError, match=r'a\.jsonl, line 2: damaged') as raised:
    Journal(path).records()
  assert '\n' not in str(raised.value)


def test_a_journal_that_cannot_be_written_or_read_is_a_users_mistake(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=r'cannot write the journal .*file/a\.jsonl'):
    Journal(tmp_path / 'file' / 'a.jsonl').append({})
  with pytest.raises(UserError, match='cannot read the journal'):
    Journal(tmp_path).records()


def test_keep_drops_records_in_one_step(tmp_path):
  journal = Journal(tmp_path / 'a.jsonl')
  for i in range(4):
    journal.append({'i': i, 'x': 0.1 * i})
  before = journal.path.read_bytes().splitlines(keepends=True)
  assert not journal.keep(lambda r: True)
  assert journal.keep(lambda r: r['i'] != 1)
  assert journal.path.read_bytes() == before[0] + before[2] + before[3]
  assert os.listdir(tmp_path) == ['a.jsonl']


def test_read_all_merges_in_the_order_of_file_names(tmp_path):
  assert read_all(tmp_path / 'absent') == []
  for name in ('b', 'a', 'c'):
    Journal(tmp_path / f'{name}.jsonl').append({'from': name})
  Journal(tmp_path / 'a.jsonl').append({'from': 'a again'})
  (tmp_path / 'notes.txt').write_text('not a journal')
  assert [r['from'] for r in read_all(tmp_path)] == ['a', 'a again', 'b', 'c']
  assert [r['from'] for r in read_all(tmp_path, 'b*')] == ['b']


def test_replace_file_keeps_the_first_when_asked(tmp_path):
  path = tmp_path / 'a' / 'file'
  replace_file(path, b'one', keep_existing=True)
  replace_file(path, b'two', keep_existing=True)
  assert path.read_bytes() == b'one'
  replace_file(path, b'three')
  assert path.read_bytes() == b'three'
  assert os.listdir(path.parent) == ['file']


def test_a_killed_writer_loses_nothing_it_reported(tmp_path):
  path = tmp_path / 'a.jsonl'
  reported = -1
  for lines in (3, 40):
    process = subprocess.Popen(
      [sys.executable, '-c', WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    for _ in range(lines):
      reported = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    records = Journal(path).records()
    assert len(records) > reported
    assert [r['i'] for r in records] == list(range(len(records)))


def test_to_plain_makes_keys_text():
  assert json.dumps(to_plain({1: {2.5: None}})) == '{"1": {"2.5": null}}'


def test_a_line_has_a_checksum_and_is_plain_json_for_others(tmp_path):
  journal = Journal(tmp_path / 'a.jsonl')
  records = [{'seed': 0, 'loss': 0.1}, {'seed': 1, 'loss': math.nan}, {}]
  for record in records:
    journal.append(record)
  frame = pd.read_json(journal.path, lines=True, dtype={'crc': str})
  assert frame['loss'][0] == 0.1
  assert frame['crc'].str.len().tolist() == [8, 8, 8]
  assert journal.records()[0] == records[0]
  with pytest.raises(ValueError, match='crc is no name for a value'):
    journal.append({'crc': 1})


def test_any_changed_byte_of_a_line_is_noticed(tmp_path):
  """Also in the first line, in the name of the checksum, and at the end of the file."""
  path = tmp_path / 'a.jsonl'
  records = [{'seed': seed, 'loss': 0.1 + seed, 'text': 'naïve'} for seed in range(2)]
  for record in records:
    Journal(path).append(record)
  whole = path.read_bytes()
  for place in range(len(whole)):
    for change in (1, 2, 0x80):
      content = bytearray(whole)
      content[place] ^= change
      path.write_bytes(content)
      for record in Journal(path).sound():
        assert record in records, (place, change)
      if place < len(whole) - 1:
        assert len(Journal(path).sound()) < 2, (place, change)


def test_lines_of_earlier_versions_are_read_before_those_with_checksums(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"i": 0}\n')
  journal = Journal(path)
  journal.append({'i': 1})
  assert journal.records() == [{'i': 0}, {'i': 1}]
  with path.open('ab') as file:
    file.write(b'{"i": 2}\n')
  with pytest.raises(UserError, match='line 3: damaged, without a checksum, after lines that have'):
    journal.records()
  assert journal.sound() == [{'i': 0}, {'i': 1}]


def test_damaged_lines_are_named_and_left_out_or_dropped_with_what_follows(tmp_path, caplog):
  journal = Journal(tmp_path / 'a.jsonl')
  for i in range(4):
    journal.append({'i': i})
  content = journal.path.read_bytes().replace(b'"i": 1', b'"i": 7')
  journal.path.write_bytes(content)
  assert [record['i'] for record in journal.sound()] == [0, 2, 3]
  assert 'a.jsonl, line 2: damaged, not what was written' in caplog.text
  assert journal.keep(lambda record: record['i'] < 3)
  assert journal.path.read_bytes() == b''.join(content.splitlines(keepends=True)[:3])
  assert journal.keep_whole()
  assert journal.records() == [{'i': 0}]
  assert 'it and 1 lines after it are dropped' in caplog.text
  assert not journal.keep_whole()


def test_a_full_disk_leaves_whole_lines_and_one_line_of_reason(tmp_path):
  """A limit on the size of files is how a full disk is made without one."""
  program = (
    'import resource, signal, sys; from additive_jax.files.journal import Journal;'
    'signal.signal(signal.SIGXFSZ, signal.SIG_IGN);'
    'resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));'
    'journal = Journal(sys.argv[1]);'
    '[journal.append({"i": i}) for i in range(9)]'
  )
  path = tmp_path / 'a.jsonl'
  process = subprocess.run(
    [sys.executable, '-c', program, path], capture_output=True, text=True, check=False
  )
  last = process.stderr.splitlines()[-1]
  assert last == (
    f'additive_jax.errors.UserError: cannot write the journal {path} (File too large); expected a '
    'writable file'
  )
  assert [record['i'] for record in Journal(path).records()] == [0, 1, 2]
  assert path.read_bytes().endswith(b'\n')


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
  path = tmp_path / 'report.html'
  mine = temporaries.beside(path)
  machine = mine.name.split('.')[-2].split('-')[0]
  gone = subprocess.Popen([sys.executable, '-c', ''])
  gone.wait()
  old, new = '.a.0123abcd-1.tmp', '.b.0123abcd-1.tmp'
  names = [mine.name, f'.c.{machine}-{gone.pid}.tmp', old, new, '.d.12.tmp', '.e.tmp', 'f.1.tmp']
  for name in names:
    (tmp_path / name).write_text('')
  (tmp_path / f'.net.{machine}-{gone.pid}.tmp' / 'orbax').mkdir(parents=True)
  for name in (old, '.d.12.tmp', '.e.tmp', 'f.1.tmp'):
    os.utime(tmp_path / name, (0, 0))
  removed = temporaries.remove_stale(tmp_path.iterdir())
  assert {path.name.split('.')[1] for path in removed} == {'a', 'c', 'd', 'net'}
  assert sorted(os.listdir(tmp_path)) == sorted([mine.name, new, '.e.tmp', 'f.1.tmp'])
