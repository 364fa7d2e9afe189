"""Examples a second, and their share of what matmuls reach on this machine."""

import json
import logging

import jax
import pytest
import tiny

from additive_jax.experiments import speed, sweep
from additive_jax.files.programs import VARIABLE
from additive_jax.parallel import peak


@pytest.fixture(autouse=True)
def forgotten():
  peak._kept_peak.cache_clear()
  yield
  peak._kept_peak.cache_clear()


def test_a_peak_is_measured_once(tmp_path, monkeypatch):
  monkeypatch.setenv(VARIABLE, str(tmp_path / 'cache'))
  monkeypatch.setattr(peak, 'SECONDS', 0.0)
  monkeypatch.setattr(peak, 'SIZES', {'cpu': 64})
  first = peak.matmul_peak(jax.devices())
  assert first > 0
  (kept,) = json.loads((tmp_path / 'cache' / 'peaks.json').read_text()).values()
  assert kept == first  # devices of one CPU share its cores
  peak._kept_peak.cache_clear()
  monkeypatch.setattr(peak, 'measured_peak', None)
  assert peak.matmul_peak(jax.devices()[:1]) == first


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
  lines = (tmp_path / 'run' / 'journals' / 'speed.jsonl').read_text().splitlines()
  facts = json.loads(lines[0])
  assert facts['utilisation'] == pytest.approx(facts['flops_per_second'] / 1e12)
  assert facts['examples_per_second'] > 0
