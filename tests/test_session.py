"""From a config to data, model and run directory."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny

import additive_jax
from additive_jax import data as data_
from additive_jax.errors import Stopped, UserError
from additive_jax.experiments import session as session_
from additive_jax.experiments.fit import point
from additive_jax.experiments.network import make_model
from additive_jax.experiments.opening import open_session
from additive_jax.gates.structure import all_bits
from additive_jax.models import Transformer, identity
from additive_jax.models.additive import initial
from additive_jax.models.moe import Experts
from additive_jax.train.recipe import Structures


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tiny.programs(tmp_path_factory)):
    yield


def opened(options=(), workdir=None, **kwargs):
  kwargs = {'check': lambda session: None, 'devices': 2} | kwargs
  return open_session(tiny.config('sweep', options), workdir, **kwargs)


def test_session(tmp_path):
  with opened({'seed': 3, 'train.batch_size': 32}, tmp_path / 'run') as session:
    assert session.seeds == [3, 4]
    assert session.training.steps(1.0) == 4  # of 120 examples
    assert session.space.num_gates == 3
    assert session.space.flops('111') > session.space.flops('000') > 0
    assert len(session.test[0]) == len(session.test[1]) == 30
    assert session.machine.devices == jax.devices()[:2]
    assert session.training.recipe(4) is session.training.recipe(4)
    assert session.training.recipe(4) is not session.training.recipe(5)
    trainer = session.trainer(session.training.recipe(4), session.training.sampler(4), 3)
    assert dict(trainer.mesh.shape) == {'structure': 2, 'data': 1}
    assert trainer.batch_size == 32
  assert (tmp_path / 'run' / 'config.json').exists()


def test_very_many_are_ranked_in_portions_and_a_stop_is_heard_meanwhile(tmp_path, monkeypatch):
  with opened(workdir=tmp_path / 'run') as session:
    variables = initial(session.model, jax.random.key(0), session.test[0])
    bits = all_bits(3)[[5, 0, 7, 2, 1, 3]]
    whole = session.evaluate(variables, bits)
    monkeypatch.setattr(session_, 'PORTION', 4)
    parts = session.evaluate(variables, bits)
    np.testing.assert_allclose(parts.loss, whole.loss, rtol=1e-6)
    np.testing.assert_array_equal(parts.accuracy, whole.accuracy)
    monkeypatch.setattr(type(session.stopper), 'stop_requested', True)
    for portion in (4, 100):
      monkeypatch.setattr(session_, 'PORTION', portion)
      with pytest.raises(Stopped):
        session.evaluate(variables, bits)


@pytest.mark.slow
def test_experts_over_devices_do_not_make_another_run(tmp_path):
  """The mesh has an axis for them; directory and checkpoints are the same for any number."""
  model = Transformer(1, 4, 2, 4, 10, routing=Experts(4))
  identities = []
  for count in (2, 1):
    options = {'data.name': 'digits', 'train.expert_devices': count}
    with opened(options, tmp_path / 'run', model=model, devices=4) as session:
      trainer = session.trainer(session.training.recipe(4), session.training.sampler(4), 3)
      identities.append(session.identity)
    axes = {'expert': 2} if count == 2 else {}
    assert dict(trainer.mesh.shape) == {'structure': 4 // count, 'data': 1} | axes
  assert identities[0] == identities[1]
  assert 'Transformer' in identities[0]['model']


def test_devices_for_experts_of_a_model_without(tmp_path):
  """In a comparison, networks without experts of their own are trained whole."""
  options = {'data.name': 'digits', 'train.expert_devices': 2}
  with opened(options, tmp_path / 'run') as session:
    with pytest.raises(UserError, match='MLP over 2 expert_devices: expected a model with experts'):
      session.machine.check_networks([session.model])
    mixed = Transformer(1, 4, 2, 4, 10, routing=Experts(4))
    session.machine.check_networks([session.model, mixed])
    odd = mixed.clone(routing=Experts(3))
    with pytest.raises(UserError, match=r'3 expert of .* over 2 expert_devices: expected a'):
      session.machine.check_networks([session.model, odd])
    trainer = session.trainer(session.training.recipe(4), session.training.sampler(4), 3)
    assert 'expert' not in trainer.mesh.shape


def test_nothing_is_written_when_the_check_fails(tmp_path):
  def check(session):
    assert session.space.num_gates == 3
    assert not (tmp_path / 'run').exists()
    raise UserError('no')

  with pytest.raises(UserError, match='no'), opened((), tmp_path / 'run', check=check):
    pass
  assert not (tmp_path / 'run').exists()


def test_default_directory_is_named_by_the_options(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for options in ({}, {'shard': '1/2'}, {'seed': 5}, {'learning_rate': 0.5}):
    with opened(options, name='mine'):
      pass
  names = sorted(path.name for path in (tmp_path / 'runs').iterdir())
  assert len(names) == 3  # the shard is no other run
  assert all(re.fullmatch(r'mine-[0-9a-f]{8}', name) for name in names)


def test_directory_of_another_config(tmp_path):
  with opened((), tmp_path / 'run'):
    pass
  message = r'holds a run of another config: seed: 0 there, 1 here; choose another --workdir'
  with pytest.raises(UserError, match=message), opened({'seed': 1}, tmp_path / 'run'):
    pass


def test_model_of_the_config():
  options = tiny.config('sweep', {'model.hidden': (4, 5, 6)}).model
  model = make_model(options, data_.load('digits', valid=0.0))
  assert model == additive_jax.models.MLP(3, 8, (4, 5, 6), 10)


def test_unknown_gate():
  space = additive_jax.models.MLP(3, 8, 8, 3).space
  with pytest.raises(UserError, match="unknown gate 'block_3/residual': expected one of block_00"):
    space.index('block_3/residual')
  with pytest.raises(UserError, match="did you mean 'block_02/residual'"):
    space.structure(on=['blok_02/residual'])


def test_structures_alone_are_not_distilled(tmp_path):
  """All-on of a network trained alone is half untrained: no teacher."""
  losses = []
  for i, distill in enumerate((0.0, 0.9)):
    with opened({'train.distill': distill}, tmp_path / str(i)) as session:
      recipe = session.training.recipe(15)
      assert recipe.loss.distill == distill
      population = session.population(recipe, 0)
      member = next(population.train([session.space.parse('010')], 15))
      losses.append(member.loss)
  assert losses[0] == losses[1]


def test_a_models_description_is_the_same_in_every_process():
  class Own(nn.Module):
    activation: object = dataclasses.field(default=functools.partial(nn.leaky_relu))
    layer: nn.Module = nn.Dense(3)
    sizes: tuple = (4,)
    kinds: dict = dataclasses.field(default_factory=lambda: {'a': object(), 'b': nn.gelu})

  assert ' at 0x' in repr(Own())
  found = identity.describe(Own())
  assert '\n' not in found
  assert ' at 0x' not in found
  for part in ('leaky_relu', 'Dense( # attributes features = 3 ', 'sizes=(4,)', 'function gelu'):
    assert part in found


def test_point_leaves_out_what_is_not_finite():
  values = {
    'loss': np.array([[1.0, np.nan], [3.0, 5.0]]),
    'finite': np.array([[True, False], [True, True]]),
    'gradient_norm': np.array([2.0, 4.0]),
  }
  assert point(values, Structures(), ['a', 'b']) == {
    'loss': 3.0,
    'gradient_norm': 3.0,
    'skipped': 1,
    'loss/a': 2.0,
    'loss/b': 5.0,
  }
