"""Compiled programs are kept between runs, in a place that may be anything."""

import logging
import os
import time
import warnings

import jax
import jax.numpy as jnp
import pytest

from additive_jax import launch
from additive_jax.files import programs
from additive_jax.files.programs import VARIABLE, kept_programs, tidy


@pytest.fixture(autouse=True)
def no_other_cache():
  """The tests may be run with a cache of JAX's own, which would come first."""
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', None)
  yield
  jax.config.update('jax_compilation_cache_dir', before)


def compile_one():
  """Compiles a program that this process has not compiled."""
  jax.clear_caches()
  return jax.jit(lambda x: jnp.sin(x) * 3)(jnp.arange(4.0)).block_until_ready()


def test_a_second_run_reads_what_the_first_compiled(tmp_path, monkeypatch):
  monkeypatch.setenv(VARIABLE, str(tmp_path / 'kept'))
  names = ('jax_compilation_cache_dir', *programs.SETTINGS)
  before = [getattr(jax.config, name) for name in names]
  hits = []
  listen = lambda event, **_: hits.append(event) if 'cache_hits' in event else None
  jax.monitoring.register_event_listener(listen)
  try:
    with kept_programs() as folder:
      compile_one()
    kept = sorted(folder.glob('*-cache'))
    assert kept
    assert folder.parent.parent == tmp_path / 'kept'
    first = len(hits)
    with kept_programs():
      compile_one()
    assert len(hits) > first
  finally:
    jax.monitoring.unregister_event_listener(listen)
  assert sorted(folder.glob('*-cache')) == kept
  assert [getattr(jax.config, name) for name in names] == before


def test_a_cache_of_the_users_own_comes_first(tmp_path, monkeypatch):
  monkeypatch.setenv(VARIABLE, str(tmp_path / 'kept'))
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'own'))
  with kept_programs() as folder:
    assert folder is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'own')
  assert not (tmp_path / 'kept').exists()


def test_it_can_be_turned_off(monkeypatch):
  monkeypatch.setenv(VARIABLE, 'off')
  with kept_programs() as folder:
    assert folder is None
    assert jax.config.jax_compilation_cache_dir is None


def test_the_platforms_own_place_is_the_default(tmp_path, monkeypatch):
  monkeypatch.delenv(VARIABLE)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  with kept_programs() as folder:
    assert folder.is_relative_to(tmp_path / 'additive_jax' / 'xla')


def test_a_place_that_cannot_be_used_is_one_warning(tmp_path, monkeypatch, caplog):
  place = tmp_path / 'file'
  place.write_text('')
  monkeypatch.setenv(VARIABLE, str(place))
  with caplog.at_level(logging.WARNING, 'additive_jax'), kept_programs() as folder:
    compile_one()
  assert folder is None
  assert len(caplog.records) == 1
  assert f'{place}/xla' in caplog.text
  assert VARIABLE in caplog.text


def test_damaged_programs_are_compiled_and_written_anew(tmp_path, monkeypatch):
  monkeypatch.setenv(VARIABLE, str(tmp_path))
  with kept_programs() as folder:
    compile_one()
  path = max(folder.glob('*-cache'), key=lambda path: path.stat().st_size)
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])  # as a kill leaves it
  with warnings.catch_warnings(), kept_programs():
    warnings.simplefilter('error')
    assert not path.exists()
    compile_one()
  assert len(path.read_bytes()) > len(whole) // 2


def test_what_was_used_longest_ago_makes_room(tmp_path):
  for i in range(4):
    path = tmp_path / f'{i}-cache'
    path.write_bytes(b'?' * 100)  # no zlib: not looked into
    os.utime(path, (time.time() - 100 + i,) * 2)
  (tmp_path / 'other').write_bytes(b'?' * 1000)
  tidy(tmp_path, most=250)
  assert sorted(path.name for path in tmp_path.glob('*-cache')) == ['2-cache', '3-cache']
  assert (tmp_path / 'other').exists()


def test_the_command_names_the_place(monkeypatch, capsys):
  monkeypatch.setenv(VARIABLE, 'off')
  assert launch.main(['launch', '--config=exp1', '--cache=/a', '--config.num_seeds=0']) == 2
  assert os.environ[VARIABLE] == '/a'
