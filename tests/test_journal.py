"""Journals lose at most the line that was being written, and give back exactly what was put in."""

import json
import math
import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from additive_jax.errors import UserError
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
