"""Structures that are one network: counted, trained, ranked, searched and named once."""

import functools
import itertools
import json

import numpy as np
import optax
import pytest
import tiny

import additive_jax as aj
from additive_jax.errors import UserError
from additive_jax.experiments import cotrain, stochastic, sweep
from additive_jax.experiments.opening import open_session
from additive_jax.files.journal import Journal
from additive_jax.gates import networks
from additive_jax.gates.structure import Gate, Space, Structure, all_bits
from additive_jax.models.additive import space_of
from additive_jax.report import statistics
from additive_jax.search import METHODS, Search
from additive_jax.search.generations import Generations
from additive_jax.train.population import Population
from additive_jax.train.recipe import Recipe
from additive_jax.train.samplers import listed
from additive_jax.train.trainer import Trainer

MIXED = {'model.gates': ('residual', 'sub_activation'), 'model.num_chunks': 3}
MIXED |= {'model.num_blocks': 2, 'num_seeds': 1}
# Two blocks of a residual gate and two joins: 2^6 structures are 5^2 networks.
SPACES = {
  'mixed': space_of(aj.models.MLP(2, 6, 6, 3, gates=MIXED['model.gates'], num_chunks=3)),
  'plain': space_of(aj.models.MLP(3, 4, 4, 3)),
  'inner alone': space_of(aj.models.MLP(2, 6, 6, 3, gates=('sub_activation',), num_chunks=3)),
  'scattered': Space((Gate('a', within='r'), Gate('b'), Gate('r'), Gate('c', within='r'))),
}
COUNTS = {'mixed': 25, 'plain': 8, 'inner alone': 16, 'scattered': 10}


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tmp_path_factory.getbasetemp() / 'programs'):
    yield


def by_hand(space, bits):
  """The canonical form, gate by gate."""
  names = [gate.name for gate in space]
  off = lambda row, gate: gate.within is not None and not row[names.index(gate.within)]
  return np.array([[b and not off(row, g) for b, g in zip(row, space)] for row in bits], bool)


@pytest.mark.parametrize('name', SPACES)
def test_networks_are_those_of_all_structures(name):
  space, everything = SPACES[name], all_bits(SPACES[name].num_gates)
  forms = by_hand(space, everything)
  np.testing.assert_array_equal(networks.canonical(space, everything), forms)
  found = networks.all_networks(space)
  assert len(found) == networks.num_networks(space) == COUNTS[name]
  assert {row.tobytes() for row in found} == {row.tobytes() for row in forms}
  np.testing.assert_array_equal(found[networks.places_of(space, everything)], forms)
  if name != 'scattered':  # whose places are not integers
    np.testing.assert_array_equal(found, everything[(forms == everything).all(1)])


def test_all_networks_of_more_gates_than_structures_can_be_listed():
  space = space_of(aj.models.MLP(5, 6, 6, 3, gates=MIXED['model.gates'], num_chunks=6))
  assert space.num_gates == 30
  with pytest.raises(UserError, match='39,135,393 networks, too many'):
    networks.all_networks(space)
  assert len(networks.sampled_networks(space, 64, seed=0)) == 64


def test_sampled_networks_differ_and_end_with_all_on():
  space = SPACES['mixed']
  some = networks.sampled_networks(space, 20, seed=0)
  assert len(np.unique(some, axis=0)) == 20
  np.testing.assert_array_equal(some, by_hand(space, some))
  assert some[-1].all()
  assert len(networks.sampled_networks(space, 25, seed=0)) == 25


@pytest.mark.parametrize('method', METHODS)
def test_a_search_spends_its_budget_on_networks(method):
  space, asked = SPACES['mixed'], []
  weights = np.random.default_rng(0).normal(size=6)

  def evaluate(bits):
    asked.extend(row.tobytes() for row in bits)
    return by_hand(space, bits) @ weights

  found = Search(method, budget=25, population=5).run(evaluate, space)
  assert len(np.unique(by_hand(space, found.bits), axis=0)) == 25 == len(set(asked))
  assert len(np.unique(by_hand(space, found.best(8)), axis=0)) == 8
  with pytest.raises(UserError, match=r'budget 26: expected at most 25 networks of 2\^6 = 64'):
    Search(method, budget=26, population=5).run(evaluate, space)


def test_a_search_goes_on_from_a_journal_in_which_networks_come_again(tmp_path):
  space = SPACES['mixed']
  journal = Journal(tmp_path / 'search.jsonl')
  texts = ['111111', '000000', '011000', '100000', '010000', '110000']
  loss = [[0.1], [0.5], [0.5], [0.3], [0.5], [0.4]]
  journal.append({'structures': texts, 'loss': loss, 'accuracy': loss})
  known = Generations(journal, space).means()
  assert [str(Structure(tuple(row))) for row in known.bits] == [texts[i] for i in (0, 1, 3, 5)]
  assert known.cost.tolist() == [0.1, 0.5, 0.3, 0.4]
  evaluate = lambda bits: bits.sum(1)
  found = Search(budget=8, population=4).run(evaluate, space, known)
  assert found.cost[:4].tolist() == known.cost.tolist()
  assert len(np.unique(found.bits, axis=0)) == 8


@pytest.fixture(scope='module')
def swept(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('sweep') / 'run'
  return sweep.run(tiny.config('sweep', MIXED), workdir), workdir


def test_a_sweep_trains_and_ranks_each_network_once(swept):
  result, workdir = swept
  texts = list(result.table['structure'])
  assert len(texts) == len(set(texts)) == 25
  bits = np.array([Structure.from_string(text).bits for text in texts])
  np.testing.assert_array_equal(bits, by_hand(SPACES['mixed'], bits))
  journals = [Journal(path).records() for path in (workdir / 'journals').glob('sweep*.jsonl')]
  lines = [line for line in itertools.chain(*journals) if line.get('structure')]
  assert len({line['structure'] for line in lines}) == 25
  assert (result.summary['num_networks'], result.summary['num_structures']) == (25, 64)
  assert result.agreement['num_structures'] == 25
  assert '25 networks (64 structures) of MLP' in (workdir / 'report.html').read_text()


def test_effects_are_averages_over_all_structures(swept):
  result, _ = swept
  loss = dict(zip(result.table['structure'], result.table['loss']))
  forms = by_hand(SPACES['mixed'], all_bits(6))
  every = np.array([loss[str(Structure(tuple(row)))] for row in forms])
  expected, pairs = statistics.effects_from_sample(all_bits(6), every)
  np.testing.assert_allclose(result.effects['effect'], expected, atol=1e-9)
  matrix = result.interactions.drop(columns='gate').to_numpy(float)
  np.testing.assert_allclose(matrix, pairs, atol=1e-9)


def test_a_sweep_of_an_earlier_version_is_read(swept, tmp_path):
  """Its pool was judged by all 2^n structures, and structures were trained under any name."""
  result, workdir = swept
  tiny_copy = tmp_path / 'run'
  tiny_copy.mkdir()
  for name in ('config.json', 'environment.json', 'metrics.jsonl'):
    (tiny_copy / name).write_bytes((workdir / name).read_bytes())
  (old,) = (workdir / 'journals').glob('sweep.jsonl')
  places = networks.places_of(SPACES['mixed'], all_bits(6))
  for line in Journal(old).records():
    if line['variant'] == 'shared':
      line |= {key: np.array(line[key])[places].tolist() for key in ('loss', 'accuracy')}
    Journal(tiny_copy / 'journals' / 'sweep.jsonl').append(line)
  again = sweep.run(tiny.config('sweep', MIXED), tiny_copy)
  assert again.table.equals(result.table)
  assert again.effects.equals(result.effects)


def test_the_best_of_a_sweep_are_k_networks(swept, tmp_path):
  """Also of a table in which an earlier version ranked all 2^n structures."""
  result, workdir = swept
  best = list(result.table['structure'][:3])
  options = MIXED | {'structures_from': str(workdir), 'cotrain.top_k': 3}
  with open_session(
    tiny.config('cotrain', options), tmp_path / 'a', check=cotrain.STUDY.check
  ) as session:
    assert [str(s) for s in cotrain.chosen_structures(session)] == best
  old = tmp_path / 'old'
  old.mkdir()
  (old / 'config.json').write_bytes((workdir / 'config.json').read_bytes())
  (old / 'summary.json').write_text(json.dumps({'experiment': 'sweep', 'finished': True}))
  forms = by_hand(SPACES['mixed'], all_bits(6))
  rank = dict(zip(result.table['structure'], result.table['rank']))
  pairs = zip(forms, all_bits(6))
  text = lambda row: str(Structure(tuple(row)))
  rows = sorted((rank[text(form)], text(row)) for form, row in pairs)
  lines = [f'{structure},{place}' for place, (_, structure) in enumerate(rows, start=1)]
  (old / 'structures.csv').write_text('\n'.join(['structure,rank', *lines, '']))
  options |= {'structures_from': str(old)}
  with open_session(
    tiny.config('cotrain', options), tmp_path / 'b', check=cotrain.STUDY.check
  ) as session:
    assert [str(s) for s in cotrain.chosen_structures(session)] == best


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (
      {'structures': ('011100', '001100')},
      'structures 011100 and 001100 of config.structures are one network, 000100',
    ),
    ({'cotrain.top_k': 26}, 'expected at most 25 different networks, which the 2^6 = 64'),
    (
      {'sampler.name': 'listed', 'sampler.structures': ('010000', '001000')},
      'structures 010000 and 001000 of config.sampler.structures are one network, 000000',
    ),
  ],
)
def test_one_network_given_twice_is_refused(options, message, tmp_path):
  with pytest.raises(UserError) as error:
    cotrain.run(tiny.config('cotrain', {**MIXED, **options}), tmp_path / 'run')
  assert message in str(error.value)
  assert not (tmp_path / 'run').exists()


def test_given_structures_are_named_by_their_network(tmp_path):
  options = MIXED | {'structures': ('011100', '111111'), 'cotrain.top_k': 0}
  with open_session(
    tiny.config('cotrain', options), tmp_path / 'run', check=cotrain.STUDY.check
  ) as session:
    assert [str(s) for s in cotrain.chosen_structures(session)] == ['000100', '111111']


def test_a_pool_of_random_structures_is_judged_by_networks(tmp_path):
  config = tiny.config('stochastic', MIXED)
  with open_session(config, tmp_path / 'run', check=lambda session: None) as session:
    (arm, *_) = stochastic.make_variants(session)
    (bits,) = arm.judge.args
  assert len(bits) == len(np.unique(by_hand(SPACES['mixed'], bits), axis=0)) == 25


def test_a_network_alone_and_a_listed_pool(tmp_path):
  model = aj.models.MLP(1, 6, 6, 3, gates=MIXED['model.gates'], num_chunks=3)
  data = aj.data.load('tabular:iris', valid=0.0)
  recipe = Recipe(model, 'classification', optax.sgd(0.1))
  population = Population(recipe, data, batch_size=8, seed=0)
  members = list(population.train(['011', '111', '001'], stop=2))
  losses = {str(member.structure): member.loss for member in members}
  assert losses['011'] == losses['001'] != losses['111']
  make = functools.partial(Trainer, recipe, data.train, batch_size=8, seed=0)
  with pytest.raises(UserError, match='001 and 011 of the listed sampler are one network, 000'):
    make(listed(['011', '111', '001'], 3))
  make(listed(['111', '111'], 3))  # one in two slots is what was asked for


def test_a_cut_is_named_by_its_network():
  model = aj.models.MLP(2, 6, 6, 3, gates=MIXED['model.gates'], num_chunks=3)
  variables = model.init(aj.models.additive.jax.random.key(0), np.ones((1, 4), np.float32))
  first, second = (aj.compress.cut(model, variables, text) for text in ('011110', '000110'))
  assert str(first.structure) == str(second.structure) == '000110'
  assert first.config == second.config
  assert first.rule == second.rule
