"""Examples a second, and their share of what matmuls reach on this machine."""

import json
import logging
import types

import jax
import numpy as np
import pytest
import tiny

from additive_jax.experiments import speed, sweep
from additive_jax.experiments.opening import open_session
from additive_jax.experiments.standalone import Crowd
from additive_jax.files import seal
from additive_jax.files.journal import Journal
from additive_jax.files.programs import VARIABLE
from additive_jax.parallel import peak


def forget():
  peak._PEAKS.clear()
  peak._AGAIN.clear()


@pytest.fixture(autouse=True)
def forgotten():
  forget()
  yield
  forget()


def test_a_peak_is_measured_once(tmp_path, monkeypatch):
  monkeypatch.setenv(VARIABLE, str(tmp_path / 'cache'))
  monkeypatch.setattr(peak, 'SECONDS', 0.0)
  monkeypatch.setattr(peak, 'SIZES', {'cpu': 64})
  first = peak.matmul_peak(jax.devices())
  assert first > 0
  (kept,) = json.loads((tmp_path / 'cache' / 'peaks.json').read_text()).values()
  assert kept == first  # devices of one CPU share its cores
  forget()
  monkeypatch.setattr(peak, 'measured_peak', None)
  assert peak.matmul_peak(jax.devices()[:1]) == first


def test_a_peak_of_a_busy_machine_is_measured_again_once(tmp_path, monkeypatch):
  monkeypatch.setenv(VARIABLE, str(tmp_path))
  measured = iter([2.0, 8.0])
  monkeypatch.setattr(peak, 'measured_peak', lambda device, dtype: next(measured))
  reached = [0.0, 1.0, 4.0, 9.0]
  peaks = [peak.matmul_peak(jax.devices(), reached=rate) for rate in reached]
  assert peaks == [2.0, 2.0, 8.0, 8.0]
  forget()
  assert peak.matmul_peak(jax.devices()) == 8.0


@pytest.mark.parametrize('content', ['', '[]', '{"a": "b"}'])
def test_a_damaged_file_is_measured_again(tmp_path, monkeypatch, content):
  monkeypatch.setenv(VARIABLE, str(tmp_path))
  (tmp_path / 'peaks.json').write_text(content)
  monkeypatch.setattr(peak, 'measured_peak', lambda device, dtype: 5.0)
  assert peak.matmul_peak(jax.devices()) == 5.0


def test_a_training_says_its_speed(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(speed, 'LEAST', 0.0)
  monkeypatch.setattr(peak, 'measured_peak', lambda device, dtype: 1e12)
  caplog.set_level(logging.INFO, 'additive_jax')
  options = {'train.log_every': 2, 'train.epochs': 4.0, 'sweep.modes': ('shared',), 'num_seeds': 1}
  with tiny.cached_programs(tmp_path / 'programs'):
    sweep.run(tiny.config('sweep', options), tmp_path / 'run', devices=1)
  (line,) = [r.getMessage() for r in caplog.records if 'examples/s' in r.getMessage()]
  assert line.endswith('% of the 1,000 GFLOP/s that matmuls reach here')
  page = tmp_path / 'run' / 'report.html'
  lines = (tmp_path / 'run' / 'journals' / 'speed.jsonl').read_text().splitlines()
  facts = json.loads(lines[0])
  assert facts['utilisation'] == pytest.approx(facts['flops_per_second'] / 1e12)
  assert facts['examples_per_second'] > 0
  kept = json.loads((tmp_path / 'run' / 'speed.json').read_text())
  assert kept[facts['tag']] == pytest.approx(
    {k: facts[k] for k in facts if k not in ('tag', 'crc')}
  )
  assert '% of matmul peak' in page.read_text()
  text, digest = page.read_text(), seal.digest(page)
  start, end = (text.index(mark) for mark in seal.VARIES)
  page.write_text(text[: start + len(seal.VARIES[0])] + text[end:])
  assert seal.digest(page) == digest
  page.write_text(text.replace('examples', 'exemples', 1).replace('<h1>', '<h1> '))
  assert seal.digest(page) != digest


def test_parts_of_a_stopped_training_count_together(tmp_path):
  config = tiny.config('sweep')
  with open_session(config, tmp_path / 'run', check=lambda session: None) as session:
    journal = Journal(session.rundir.journals / 'speed.jsonl')
    for seconds, rate in ((1.0, 10.0), (3.0, 30.0)):
      journal.append({'tag': 'a', 'steps': 5, 'seconds': seconds, 'examples_per_second': rate})
    journal.append({'tag': 'b', 'steps': 5, 'seconds': 2.0, 'examples_per_second': 7.0})
    found = speed.speeds(session)
  assert found['a'] == {'steps': 10, 'seconds': 4.0, 'examples_per_second': 25.0}
  assert found['b'] == {'steps': 5, 'seconds': 2.0, 'examples_per_second': 7.0}


def test_networks_alone_and_fleets_say_their_speed(tmp_path, monkeypatch):
  monkeypatch.setattr(speed, 'LEAST', 0.0)
  monkeypatch.setattr(peak, 'measured_peak', lambda device, dtype: 1e12)
  states = [object() for _ in range(4)]
  structures = ['00', '01', '01', '10', '11']  # the second and the third are one network
  of = [0, 1, 1, 2, 3]
  config = tiny.config('sweep', {'train.batch_size': 16})
  with open_session(config, tmp_path / 'run', check=lambda session: None) as session:
    space = session.space
    texts = [s + '1' * (space.num_gates - 2) for s in structures]
    members = [
      types.SimpleNamespace(state=states[i], structure=space.parse(text))
      for i, text in zip(of, texts)
    ]
    crowd = Crowd(session, session.training.recipe(1), lambda *_: {}, lambda _: {})
    population = types.SimpleNamespace(devices=jax.devices()[:1] * 2, batch_size=16)
    assert list(crowd._timed(iter(members), population, 5, 'alone-seed0')) == members
    fleet = types.SimpleNamespace(
      size=3,
      batch_size=16,
      structure=space.all_on(),
      recipe=crowd.recipe,
      mesh=types.SimpleNamespace(devices=np.array(jax.devices()[:1])),
    )
    speed.say_speed(session, fleet, 'copies', speed.Clock(10, 2.0))
    found = speed.speeds(session)
  alone, copies = found['alone-seed0'], found['copies']
  assert alone['steps'] == 10  # of two networks; the first two compile
  flops = 3 * sum(space.flops(text) for text in texts[3:]) / 2
  assert alone['flops_per_second'] == pytest.approx(alone['examples_per_second'] * flops)
  assert copies['examples_per_second'] == 3 * 16 * 10 / 2.0
  assert copies['flops_per_second'] == 3 * space.flops(space.all_on()) * 240
