"""The study of one's own that the docs show runs as it stands, but for fewer steps."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import tiny

PAGE = tiny.ROOT / 'docs' / 'own_study.md'


def code():
  (block,) = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL)
  return block


def test_it_is_short():
  assert len(code().splitlines()) <= 40


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
  """What the page's code defines, and its run directory."""
  folder, names, programs = tmp_path_factory.mktemp('own'), {}, tiny.programs(tmp_path_factory)
  short = code().replace("'train.epochs': 5.0", "'train.epochs': 1.0")
  assert short != code()
  with pytest.MonkeyPatch.context() as patched, tiny.cached_programs(programs):
    patched.chdir(folder)
    exec(compile(short, PAGE.name, 'exec'), names)
  return names, folder / 'runs' / 'samplers'


@pytest.mark.slow
def test_both_arms_spend_as_much(ran):
  names, workdir = ran
  rows = names['result'].variants.set_index('variant')
  assert rows.index.tolist() == ['uniform', 'sandwich']
  # All on, all off and random ones cost as much as random ones alone, but for the draw.
  assert rows.loc['sandwich', 'steps'] == pytest.approx(rows.loc['uniform', 'steps'], rel=0.2)
  losses = {}
  for line in (workdir / 'journals' / 'samplers.jsonl').read_text().splitlines():
    record = json.loads(line)
    losses[record['seed'], record['variant']] = record['loss']
  apart = [losses[seed, 'sandwich'] - losses[seed, 'uniform'] for seed in (0, 1)]
  assert rows.loc['sandwich', 'loss_minus_uniform'] == pytest.approx(np.mean(apart))
  assert np.isnan(rows.loc['uniform', 'loss_minus_uniform'])
  assert abs(np.mean(apart)) > 1e-6


@pytest.mark.slow
def test_it_leaves_what_every_run_leaves(ran):
  names, workdir = ran
  assert json.loads((workdir / 'config.json').read_text())['experiment'] == 'samplers'
  summary = json.loads((workdir / 'summary.json').read_text())
  assert (summary['experiment'], summary['baseline']) == ('samplers', 'uniform')
  page = (workdir / 'report.html').read_text()
  assert 'Against uniform' in page
  assert page.index('<img') < page.index('<table')
  before = tiny.contents(workdir)
  again = names['SAMPLERS'].run(names['options'], workdir)
  assert tiny.contents(workdir) == before
  pd.testing.assert_frame_equal(again.variants, names['result'].variants)
