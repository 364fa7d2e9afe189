"""Options that cannot be: one line that repeats the value, and nothing written."""

import pytest
import tiny
from bad_options import BASES, ROWS, VALUES

from additive_jax import UserError
from additive_jax.experiments.options import DECLARED, read_options
from additive_jax.experiments.studies import STUDIES


@pytest.mark.parametrize(('name', 'value', 'expected'), VALUES)
def test_value_that_is_not_allowed(name, value, expected):
  config = tiny.config('sweep')
  with config.ignore_type():
    config.update_from_flattened_dict({name: value})
  with pytest.raises(UserError) as caught:
    read_options(config)
  assert f'config.{name} {value!r}: expected {expected}' in str(caught.value)
  assert '\n' not in str(caught.value)


def test_every_rule_has_a_value_that_breaks_it():
  """But those of numbers, which many options share."""
  ruled = {o.name for o in DECLARED.values() if o.rule and not {o.kind, o.item} & {int, float}}
  assert ruled - {name for name, *_ in VALUES} == set()


@pytest.mark.parametrize('sign', [1, -1])
def test_every_number_has_two_bounds_and_is_finite(sign):
  numbers = [o for o in DECLARED.values() if {o.kind, o.item} & {int, float}]
  assert len(numbers) > 80
  for option in numbers:
    kind = option.item or option.kind
    for number in (10**30,) if kind is int else (1e30, float('inf'), float('nan')):
      value = kind(sign * number)
      value = (value,) if option.kind is tuple else value
      with pytest.raises(UserError) as caught:
        option.read(value)
      message = f'config.{option.name} {value!r}: expected {option.rule.expected}'
      assert str(caught.value) == message


@pytest.mark.parametrize(('experiment', 'options', 'message'), ROWS)
def test_options_that_cannot_be(experiment, options, message, tmp_path):
  config = tiny.config(experiment, BASES[experiment] | options)
  with pytest.raises(UserError) as caught:
    STUDIES[experiment].run(config, tmp_path / 'run', devices=4)
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda config: config.update(learnin_rate=1.0),
      "unknown option 'config.learnin_rate': expected one that the config has; "
      "did you mean 'learning_rate'?",
    ),
    (
      lambda config: config.train.update(epocs=1.0),
      "unknown option 'config.train.epocs': expected one that the config has; "
      "did you mean 'epochs'?",
    ),
    (
      lambda config: config.train.__delattr__('zero'),
      'no config.train.zero: expected every option of configs/default.py',
    ),
    (
      lambda config: config.__setitem__('train', 5),
      'config.train 5: expected one option at a time, config.train.KEY',
    ),
  ],
)
def test_options_that_a_config_has_not(change, message):
  config = tiny.config('sweep')
  with config.unlocked(), config.ignore_type():
    change(config)
  with pytest.raises(UserError) as caught:
    read_options(config)
  assert str(caught.value) == message
