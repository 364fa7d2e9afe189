"""What is costly to find is kept between processes, and found again for the same question alone."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import pytest

import additive_jax as aj
from additive_jax.files import kept as kept_
from additive_jax.files.kept import NamelessError, keeping, kept, named
from additive_jax.files.programs import tidy
from additive_jax.models import active, contract, costs
from additive_jax.models.routing import Routing

X = jax.ShapeDtypeStruct((1, 4), 'uint8')


def transformer(**fields):
  fields = {'hidden': 16, 'num_classes': 3, 'num_tokens': 5} | fields
  return aj.models.Transformer(1, 8, 2, **fields)


@pytest.fixture
def forgetful():
  """Forgets what this process remembers, as a new one has nothing."""

  def forget():
    for remembered in (costs.measured, contract._pool, contract._checked):
      remembered.cache_clear()

  forget()
  yield forget
  forget()


def test_costs_of_a_network_are_traced_once_and_the_same(tmp_path, forgetful, monkeypatch):
  routed = transformer(routing=Routing('softmax'))

  def found():
    model = transformer()
    numbers = costs.num_params(model, X), active.active_flops(routed, X)
    return aj.measure(model, X), contract.check_network(model, X), numbers

  expected = found()
  for number in range(2):
    forgetful()
    if number:
      monkeypatch.setattr(jax, 'eval_shape', None)
      monkeypatch.setattr(jax, 'jit', None)
    with keeping(tmp_path):
      assert found() == expected
  assert len(list(tmp_path.iterdir())) == len(list(tmp_path.glob('kept-*-cache'))) > 3
  tidy(tmp_path, most=0)
  assert not list(tmp_path.glob('kept-*-cache'))


@pytest.mark.parametrize('damage', ['cut', 'number', 'form', 'gone'])
def test_what_is_damaged_is_found_anew(tmp_path, damage):
  calls = []

  @kept(float, float)
  def half(x):
    calls.append(x)
    return x / 2

  with keeping(tmp_path):
    half(3)
    (path,) = tmp_path.iterdir()
    text = path.read_text()
    if damage == 'gone':
      path.unlink()
    else:
      changed = {'cut': text[:-4], 'number': text.replace('1.5', '2.5'), 'form': '[]'}
      path.write_text(changed[damage])
    assert half(3) == 1.5
    assert half(3) == 1.5
  assert calls == [3, 3]
  assert json.loads(path.read_text()) == json.loads(text)


def test_a_place_that_cannot_be_written_is_as_none(tmp_path):
  with keeping(tmp_path / 'gone'):
    assert kept(float, float)(float)(3) == 3.0


def test_other_code_or_settings_are_other_questions(tmp_path, monkeypatch):
  calls = []
  one = kept(float, float)(lambda x: calls.append(x) or 1.0)
  with keeping(tmp_path):
    one(1)
    monkeypatch.setattr(kept_, '_library', lambda: 'changed')
    one(1)
    with jax.enable_x64(True):
      one(1)
    one(1)
  assert len(calls) == 3


def test_names_tell_networks_apart():
  networks = [
    transformer(),
    transformer(hidden=17),
    transformer(num_classes=4),
    transformer(routing=Routing('softmax')),
    transformer(routing=Routing('marginal')),
    transformer(routing=Routing(keep=0.5)),
    transformer(unit='swiglu'),
  ]
  assert len({named(network) for network in networks}) == len(networks)
  shapes = [
    X,
    jax.ShapeDtypeStruct((1, 5), 'uint8'),
    jax.ShapeDtypeStruct((1, 4), 'int32'),
    {'x': X},
  ]
  assert len({named(shape) for shape in shapes}) == len(shapes)
  assert named(True) != named(1) != named(1.0) != named('1')
  assert named(nn.gelu) != named(nn.relu)


class Own(nn.Module):
  """A class of a user's, whose code may change under the same name."""


@dataclasses.dataclass
class Holder:
  """Holds anything."""

  value: object


@pytest.mark.parametrize(
  'value', [lambda x: x, Own(), Own, Holder(1), np.zeros(3), object(), (1, Own())]
)
def test_what_may_change_has_no_name(value, tmp_path):
  with pytest.raises(NamelessError):
    named(value)
  calls = []
  count = kept(float, float)(lambda x: calls.append(x) or 1.0)
  with keeping(tmp_path):
    count(value), count(value)
  assert len(calls) == 2
  assert not list(tmp_path.iterdir())
