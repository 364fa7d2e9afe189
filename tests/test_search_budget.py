"""Search under a budget: every method against the enumerated optimum of a small additive model."""

import itertools

import numpy as np
import pytest

import additive_jax as aj
from additive_jax import Gate, Space, search
from additive_jax.errors import UserError
from additive_jax.gates.structure import Shared, all_bits
from additive_jax.search import BY_BUDGET, Budget, Costs, find
from additive_jax.search.knapsack import best_within
from additive_jax.search.pair_process import NOISE, Prior
from additive_jax.search.sparse import fit

N = 12
SPACE = Space(tuple(Gate(f'layer_{i // 2:02}/{i % 2}/residual') for i in range(N)))
LEGIBLE = sorted(set(BY_BUDGET) - {'cosine'})  # those that an evaluator alone serves


def costs(kind='params'):
  return Costs(kind, SPACE, tuple(3.0 if i % 2 else 1.0 for i in range(N)), fixed=6.0)


class Loss:
  """Gates that help by different amounts, and weak interactions; counts what it is asked."""

  def __init__(self, seed=0, pairs=0.02):
    rng = np.random.default_rng(seed)
    self.gain = rng.gamma(1.0, 0.3, N)
    self.pair = np.triu(rng.normal(size=(N, N)) * pairs, 1)
    self.asked = []

  def __call__(self, bits, share=1.0):
    self.asked += [(row.tobytes(), share) for row in bits]
    off = (~bits).astype(float)
    return 1.0 + off @ self.gain + ((off @ self.pair) * off).sum(1)


def optimum(loss, model, limit):
  bits = all_bits(N)
  inside = model.of(bits) <= limit * (1 + 1e-9)
  return loss(bits)[inside].min()


@pytest.mark.parametrize('method', LEGIBLE)
def test_methods_against_the_enumerated_optimum(method):
  loss, model = Loss(), costs()
  path = find(loss, model, method=method, budget=0.7)
  best = optimum(Loss(), model, path.limit)
  assert model.of([path.best])[0] <= path.limit * (1 + 1e-9)
  # Of what the optimum costs above all-on. A leave-one-out alone stops at the first structure
  # within the budget, wherever that is.
  near = {
    'bayesian': 0.02,
    'surrogate': 0.1,
    'beam': 0.02,
    'evolution': 0.05,
    'random': 0.6,
    'leave_one_out': 0.5,
  }
  slack = near.get(method, 0.15)
  assert path.loss(path.best) - best <= slack * (best - 1.0) + 1e-9
  assert len(set(loss.asked)) == len(loss.asked)
  table = path.table
  assert (np.diff(table['loss']) < 0).all()
  assert (np.diff(table['params']) > 0).all()


def test_the_path_is_the_best_of_what_was_evaluated_at_every_cost():
  loss, model = Loss(), costs()
  path = find(loss, model, method='random', budget=0.6)
  for cost in np.unique(model.of(path.bits)):
    inside = model.of(path.bits) <= cost
    assert path.loss(path.at(cost)) == path.losses[inside].min()


@pytest.mark.parametrize('method', LEGIBLE)
def test_the_seed_decides(method):
  runs = [find(Loss(), costs(), method=method, seed=s, budget=0.7) for s in (3, 3)]
  np.testing.assert_array_equal(runs[0].bits, runs[1].bits)


@pytest.mark.parametrize('method', ['bayesian', 'beam', 'evolution', 'surrogate'])
def test_killed_and_started_again_ends_as_if_never_killed(method, tmp_path):
  whole = find(Loss(), costs(), method=method, budget=0.7, journal=tmp_path / 'whole.jsonl')
  calls = itertools.count()

  def dies(bits, share):
    if next(calls) == 2:
      raise KeyboardInterrupt
    return Loss()(bits, share)

  path = tmp_path / 'killed.jsonl'
  with pytest.raises(KeyboardInterrupt):
    find(dies, costs(), method=method, budget=0.7, journal=path)
  again = Loss()
  resumed = find(again, costs(), method=method, budget=0.7, journal=path)
  np.testing.assert_array_equal(whole.bits, resumed.bits)
  np.testing.assert_array_equal(whole.losses, resumed.losses)
  assert (tmp_path / 'whole.jsonl').read_bytes() == path.read_bytes()
  done = Loss()
  find(done, costs(), method=method, budget=0.7, journal=path)
  assert not done.asked


def test_the_process_is_a_regression_on_pairs():
  rng = np.random.default_rng(0)
  alone, places = rng.normal(size=7), np.array([0, 0, 1, 1, 2, 6, 6.0])
  prior = Prior(2.0, alone, places)
  bits = all_bits(7)[rng.permutation(128)[:30]]
  losses = rng.normal(size=30) + 3.0
  posterior = prior.given(bits[:20], losses[:20])
  mean, deviation = posterior.predict(bits[20:])
  # The same with a column for each pair, and one for what is common to them.
  size, near = prior.sizes, np.array([[1.0, 0.775, 0.55, 0.325, 0.1, 0.1, 0.1]])
  i, j = np.triu_indices(7, 1)
  distance = np.abs(places[i] - places[j]).astype(int)
  scale = np.sqrt(size[i] * size[j])
  columns = lambda off: np.concatenate(
    [
      off[:, i] * off[:, j] * scale * np.sqrt(near[0][distance]),
      (off[:, i] * off[:, j] * scale).sum(1, keepdims=True),
    ],
    axis=1,
  )
  off = (~bits).astype(float)
  features, rest = columns(off[:20]), losses[:20] - 2.0 - off[:20] @ alone
  noise = NOISE * np.square(off[:20] @ size)
  covariance = features @ features.T + np.diag(noise)
  weights = np.linalg.solve(covariance, rest)
  new = columns(off[20:])
  np.testing.assert_allclose(mean, 2.0 + off[20:] @ alone + new @ features.T @ weights, rtol=1e-4)
  left = np.eye(len(i) + 1) - features.T @ np.linalg.solve(covariance, features)
  variance = np.einsum('sa,ab,sb->s', new, left, new) * (rest @ weights) / 20
  np.testing.assert_allclose(deviation, np.sqrt(variance), rtol=1e-3)


def test_a_bayesian_search_of_gates_within_gates():
  gates = tuple(Gate(f'l{i}/r', within=f'l{i - 1}/r' if i % 3 == 1 else None) for i in range(9))
  model = Costs('params', Space(gates), (3.0, 2.0, 2.0) * 3, fixed=4.0, shared=((3.0, (2, 5)),))
  gain = np.random.default_rng(1).gamma(1.0, 0.3, 9)
  losses = lambda bits, share=1.0: 1.0 + (~bits) @ gain
  for evaluations in (None, 45):
    path = find(losses, model, budget=0.6, evaluations=evaluations)
    bits = model.canonical(all_bits(9))
    best = losses(bits)[model.of(bits) <= path.limit * (1 + 1e-9)].min()
    assert path.loss(path.best) == pytest.approx(best)
    assert path.evaluations <= (evaluations or 74)


def test_a_bayesian_search_that_finds_nothing_says_so():
  """Of gates that can go off in pairs alone no single one tells anything."""

  def losses(bits, share=1.0):
    lone = (bits.reshape(len(bits), -1, 2).sum(2) == 1).any(1)
    return np.where(lone, np.inf, 1.0)

  with pytest.raises(UserError, match=r'no structure within .* that was evaluated has a finite'):
    find(losses, costs(), budget=0.7)


def test_a_journal_of_another_pool_is_refused(tmp_path):
  path = tmp_path / 'search.jsonl'
  find(Loss(), costs(), method='greedy', journal=path, identity={'pool': 'a'})
  with pytest.raises(UserError, match=r'search\.jsonl is of another pool'):
    find(Loss(), costs(), method='greedy', journal=path, identity={'pool': 'b'})


@pytest.mark.parametrize('seed', range(4))
def test_the_knapsack_is_exact(seed):
  rng = np.random.default_rng(seed)
  gates = tuple(Gate(f'g{i}', within='g0' if i in (1, 2) else None) for i in range(8))
  shared = ((4.0, (3, 5)),)
  model = Costs('params', Space(gates), tuple(rng.uniform(1, 5, 8)), 2.0, shared)
  main, pairs = rng.normal(size=8), np.triu(rng.normal(size=(8, 8)), 1)
  bits = model.canonical(all_bits(8))
  value = bits @ main + ((bits @ pairs) * bits).sum(1)
  for limit in np.linspace(model.of([model.cheapest()])[0], model.full, 5):
    row = best_within(model, main, limit, pairs)
    found = row @ main + row @ pairs @ row
    inside = model.of(bits) <= limit * (1 + 1e-9)
    assert found == pytest.approx(value[inside].min())
    known = np.unique(bits[inside], axis=0)[:3] | row  # the best one among them
    others = inside & ~(bits[:, None] == known[None]).all(2).any(1)
    if others.any():
      row = best_within(model, main, limit, pairs, without=known)
      assert row @ main + row @ pairs @ row == pytest.approx(value[others].min())
    else:
      with pytest.raises(UserError, match='other than'):
        best_within(model, main, limit, pairs, without=known)


@pytest.mark.parametrize('seed', range(3))
def test_the_cheapest_structure_is_what_enumeration_finds(seed):
  rng = np.random.default_rng(seed)
  gates = tuple(Gate(f'g{i}', within='g0' if i in (1, 2) else None) for i in range(6))
  model = Costs('flops', Space(gates), tuple(rng.normal(size=6)), 9.0)
  assert model.of([model.cheapest()])[0] == pytest.approx(model.of(all_bits(6)).min())


def test_costs_of_a_space():
  gates = Gate('a', 5.0, 2), Gate('b', 7.0, 3, within='a'), Gate('c', 1.0, 4)
  space = Space(gates, 10.0, 1, (Shared(8, ('a', 'c')),))
  flops, params = space.costs(all_bits(3))
  np.testing.assert_allclose(Costs.of_space('flops', space).of(all_bits(3)), flops)
  np.testing.assert_allclose(Costs.of_space('params', space).of(all_bits(3)), params)


@pytest.mark.parametrize(
  ('call', 'words'),
  [
    (lambda: find(Loss(), costs(), budget=0.1), f'cheapest structure, {"0" * N}, 6 parameters'),
    (lambda: find(Loss(), costs(), budget=Budget('flops', 0.5)), 'costs in flops, not in params'),
    (lambda: find(Loss(), costs(), budget=-1), 'budget -1: expected a share'),
    (lambda: find(Loss(), costs(), method='beem'), "'beem': expected .*did you mean 'beam'"),
    (lambda: find(Loss(), costs(), method='cosine'), 'looks into the network'),
    (lambda: find(Loss(), costs(), method='greedy', evaluations=5), 'evaluations 5, greedy: no'),
    (
      lambda: find(lambda b, s: np.full(len(b), np.nan), costs()),
      'all gates on have a loss of nan',
    ),
    (lambda: search.Bayesian(levels=0), 'levels 0: expected a whole number of at least 1'),
    (lambda: search.Bayesian(doubt=-1.0), 'doubt -1.0: expected at least 0'),
    (lambda: Budget('gates', 0.5), "cost 'gates': expected one of params, flops, latency"),
    (lambda: aj.effects(all_bits(3), [0.0]), 'expected one for each'),
  ],
)
def test_what_is_refused_in_one_line(call, words):
  with pytest.raises(UserError, match=words) as error:
    call()
  assert '\n' not in str(error.value)


def test_hundreds_of_gates():
  space = Space(tuple(Gate(f'g{i}') for i in range(300)))
  model = Costs('params', space, (1.0,) * 300, fixed=0.0)
  gain = np.random.default_rng(0).gamma(1.0, 1.0, 300)
  losses = lambda bits, share: (~bits) @ gain
  path = find(losses, model, method='lazy_greedy', budget=0.9)
  assert path.loss(path.best) == pytest.approx(np.sort(gain)[:30].sum())


def test_effects_of_a_full_table_and_of_a_part():
  loss, bits = Loss(), all_bits(N)[::7]
  found = aj.effects(bits, loss(bits), gates=SPACE)
  np.testing.assert_allclose(found.alone, loss.gain, atol=1e-8)
  np.testing.assert_allclose(np.triu(found.interactions, 1), loss.pair, atol=1e-8)
  assert found.held_out.r2 > 0.999
  few = bits[np.random.default_rng(0).permutation(len(bits))[:60]]  # fewer than terms: the lasso
  few = fit(few, loss(few))
  assert np.corrcoef(few.predict(bits), loss(bits))[0, 1] > 0.95


def test_a_pool_is_searched_by_every_method(random_pool):
  model = aj.models.MLP(num_blocks=5, width=4, hidden=8, num_classes=3)
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(16, 6)).astype('f'), np.arange(16) % 3
  pool = random_pool(model, x)
  for method in BY_BUDGET:
    path = aj.search_pool(model, pool, (x, y), method=method, budget=0.7, costs='flops')
    evaluated = aj.evaluate_structures(model, pool, (x, y), [path.best]).loss
    np.testing.assert_allclose(path.loss(path.best), evaluated[0], rtol=1e-5)
  left = aj.leave_one_out(model, pool, (x, y))
  one = aj.evaluate_structures(model, pool, (x, y), ['11011', '11111']).loss
  np.testing.assert_allclose(left.delta[2], one[0] - one[1], rtol=1e-4)


def test_a_search_by_latency_keeps_its_table_and_says_how_far_it_is_off(random_pool, tmp_path):
  model = aj.models.MLP(num_blocks=4, width=64, hidden=512, num_classes=3)
  x, y = np.ones((8, 6), 'f'), np.arange(8) % 3
  pool = random_pool(model, x)
  table = aj.measure_latency(model, pool, x, seconds=0.2)
  assert table.predict(['1111'])[0] > table.predict(['0000'])[0]
  path = aj.search_pool(model, pool, (x, y), method='greedy', budget=0.999, costs=table)
  assert path.latency.structures == ('1111', str(path.best))
  assert np.isfinite(path.latency.error)
  table.write(tmp_path / 'table.json')
  assert type(table).read(tmp_path / 'table.json') == table
