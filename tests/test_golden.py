"""Every experiment ends with the numbers of its reference run; see `golden_runs`, which has more of
them, and makes them anew where a number has to change."""

import golden_runs
import pytest

# One of each experiment, over devices where that is another program. `test_old_runs` ends with
# numbers of before too, of each experiment on its usual devices.
NAMES = (
  'sweep_shards',
  'cotrain_ring',
  'stochastic_8_devices',
  'experts_4_devices',
  'dna',
  'booster',
  'compress_units',
)


@pytest.mark.thorough
@pytest.mark.parametrize('name', NAMES)
def test_ends_with_the_numbers_of_the_reference(name, tmp_path, tmp_path_factory):
  golden_runs.make_run(name, tmp_path / 'run', tmp_path_factory.getbasetemp() / 'golden')
  _, differences = golden_runs.compare(name, tmp_path / 'run')
  assert not differences


def test_a_number_that_changed_is_seen():
  reference = {'loss': [1.0, '0.5'], 'name': 'a'}
  same = {'loss': [1.0 + 1e-6, '0.500001'], 'name': 'a'}
  assert not list(golden_runs.differences(reference, same))
  other = {'loss': [1.0, '0.51'], 'name': 'b', 'more': 1}
  assert list(golden_runs.differences(reference, other)) == [
    "/loss[1]: '0.51', expected '0.5'",
    '/more: only in the new run',
    "/name: 'b', expected 'a'",
  ]
