"""Cascades of two structures against NumPy by hand: who goes on, what it costs, what it scores."""

import dataclasses

import jax
import numpy as np
import pytest

import additive_jax as aj
from additive_jax import UserError, static
from additive_jax.models import MLP, ConvNet
from additive_jax.models.flops import count_flops
from additive_jax.run.cascade import BATCH, Cascade, shared_sites
from additive_jax.run.curve import Costs, Curve, Window, curve_of
from additive_jax.run.tasks import Task

MODEL = MLP(num_blocks=4, width=8, hidden=6, num_classes=3)
CHEAP, DEAR = '1000', '1011'
EXAMPLES = 61
TASK = Task('classification')
# Probabilities of float32 networks, whose sums are in another order here.
CLOSE = {'rtol': 1e-5, 'atol': 1e-5}


@pytest.fixture(scope='module')
def x():
  return np.random.default_rng(0).normal(size=(EXAMPLES, 6)).astype(np.float32)


@pytest.fixture(scope='module')
def variables(random_pool, x):
  return random_pool(MODEL, x)


def probabilities(variables, x, structure):
  """Those of a structure in float64, [N, 3]."""
  logits = np.asarray(static(MODEL, variables, x, structure), np.float64)
  weights = np.exp(logits - logits.max(1, keepdims=True))
  return weights / weights.sum(1, keepdims=True)


@pytest.fixture(scope='module')
def said(variables, x):
  return probabilities(variables, x, CHEAP), probabilities(variables, x, DEAR)


@pytest.fixture(scope='module')
def batch(x, said):
  """Labels drawn as the dear structure has them, so that asking it pays."""
  random = np.random.default_rng(1)
  return x, np.array([random.choice(3, p=row) for row in said[1]], np.int32)


def by_hand(said, y, low, high, *, margin=False, average=False):
  """Probabilities, who goes on, loss and accuracy of a cascade, example by example."""
  rows, on = [], []
  for cheap, dear in zip(*said):
    second, first = np.sort(cheap)[-2:]
    confidence = first - second if margin else first
    on.append(low <= confidence < high)
    rows.append(((cheap + dear) / 2 if average else dear) if on[-1] else cheap)
  losses = [-np.log(row[label]) for row, label in zip(rows, y)]
  right = [row.argmax() == label for row, label in zip(rows, y)]
  return np.array(rows), np.array(on), np.mean(losses), np.mean(right)


WINDOWS = [Window(0.0, 0.6), Window(0.5, 0.7), Window(), Window(0, 0)]


@pytest.mark.parametrize('average', [False, True])
@pytest.mark.parametrize('kind', ['probability', 'margin'])
@pytest.mark.parametrize('window', WINDOWS, ids=str)
def test_what_it_says_and_scores_is_as_by_hand(variables, batch, said, window, kind, average):
  (x, y), margin = batch, kind == 'margin'
  cascade = Cascade(CHEAP, DEAR, window, kind, average)
  rows, on, loss, accuracy = by_hand(
    said, y, window.low, window.high, margin=margin, average=average
  )
  answer = cascade(MODEL, variables, x)
  assert answer.went_on.tolist() == on.tolist()
  np.testing.assert_allclose(np.exp(answer.log_probabilities), rows, **CLOSE)
  found = cascade.evaluate(MODEL, variables, batch)
  np.testing.assert_allclose([found.scores['loss'], found.scores['accuracy']], [loss, accuracy])
  assert found.share == on.mean()


def test_windows_and_structures_differ(said, batch):
  """Else the tests above would compare a thing with itself."""
  shares = [by_hand(said, batch[1], w.low, w.high)[1].mean() for w in WINDOWS]
  assert len(set(shares)) == 4
  assert np.abs(said[0] - said[1]).max() > 0.1
  margins = by_hand(said, batch[1], 0, 0.6, margin=True)[1].mean()
  assert margins != shares[0]


@pytest.mark.parametrize('two_sided', [False, True])
def test_curve_is_what_each_window_gives(variables, batch, two_sided):
  cascade = Cascade(CHEAP, DEAR)
  curve = cascade.curve(MODEL, variables, batch, two_sided=two_sided, points=9)
  assert len(curve.windows) == (1 + 9 * 8 // 2 if two_sided else 9)
  assert (np.diff(curve.flops) >= 0).all()
  for i, window in enumerate(curve.windows):
    found = dataclasses.replace(cascade, window=window).evaluate(MODEL, variables, batch)
    assert (found.share, found.flops) == (curve.share[i], pytest.approx(curve.flops[i]))
    for name, score in found.scores.items():
      assert curve.scores[name][i] == pytest.approx(score, rel=1e-9)
  assert any(window.low > 0 for window in curve.windows) == two_sided


def test_every_threshold_is_looked_at(variables, batch, said):
  """By a search over all of them, one by one, in NumPy."""
  curve = Cascade(CHEAP, DEAR).curve(MODEL, variables, batch)
  assert len(curve.windows) == EXAMPLES + 1
  confidence = np.sort(said[0].max(1))
  highs = [0.0, *(confidence[1:] + confidence[:-1]) / 2, 2.0]
  losses = np.array([by_hand(said, batch[1], 0, high)[2] for high in highs])
  np.testing.assert_allclose(curve.scores['loss'], losses, **CLOSE)
  first = np.flatnonzero(losses <= losses[-1] + 1e-9)[0]
  assert curve.cheapest() == curve.windows[first]
  assert 0 < first < EXAMPLES  # neither end would show that there was a choice
  half = (curve.flops[0] + curve.flops[-1]) / 2
  within = losses[curve.flops <= half]
  assert curve.within(half) == curve.windows[within.argmin()]


def test_ties_stay_together():
  """Examples as sure as each other go on together, or none of them."""
  confidence = np.array([0.5, 0.7, 0.5, 0.9])
  sums = lambda *values: [np.array(values)[:, None]]
  finish = lambda parts: {'loss': parts[0][:, 0]}
  curve = curve_of(confidence, sums(1.0, 1.0, 1.0, 1.0), sums(0.0, 0.0, 0.0, 0.0), finish)
  assert [window.high for window in curve.windows] == [0.0, 0.7, 0.9, np.inf]
  assert curve.scores['loss'].tolist() == [4.0, 2.0, 1.0, 0.0]
  assert curve.share.tolist() == [0.0, 0.5, 0.75, 1.0]


def test_weights_count(variables, batch):
  """What weighs nothing changes no score."""
  x, y = batch
  weight = np.r_[np.zeros(20), np.full(EXAMPLES - 20, 0.5)].astype(np.float32)
  cascade = Cascade(CHEAP, DEAR, Window(high=0.6))
  weighted = cascade.evaluate(MODEL, variables, (x, aj.data.Weighted(y, weight)))
  plain = cascade.evaluate(MODEL, variables, (x[20:], y[20:]))
  assert weighted.scores == pytest.approx(plain.scores, rel=1e-6)


def test_costs_count_what_is_shared_once(batch):
  space = aj.measure(MODEL, batch[0])
  costs = Cascade(CHEAP, DEAR).costs(MODEL, batch[0])
  pool = jax.eval_shape(MODEL.init, jax.random.key(0), batch[0])
  of_end = count_flops(
    lambda v, h: aj.models.additive.readout(MODEL, v, h),
    pool,
    jax.ShapeDtypeStruct((1, 8), 'float32'),
  )
  # Gate 0 is on in both and gate 1 in none; all but the readout and the last two sites is shared.
  embed = space.fixed_flops - of_end
  assert costs == Costs(space.flops(CHEAP), space.flops(DEAR), embed + space.gates[0].flops)
  own = space.gates[2].flops + space.gates[3].flops + of_end
  assert costs.expected(0.25) == pytest.approx(costs.cheap + 0.25 * own)
  apart = Cascade(CHEAP, DEAR).costs(MODEL, batch[0], apart=True)
  assert apart.expected(0.25) == costs.cheap + 0.25 * costs.dear


def test_only_what_goes_on_is_computed(variables, batch, monkeypatch):
  """From the shared stream, with a number of examples that is a power of two."""
  from additive_jax.run import cascade as module

  seen, run = [], module._ended

  def ended(model, structure, start, variables, h):
    seen.append((str(structure), start, len(h)))
    return run(model, structure, start, variables, h)

  monkeypatch.setattr(module, '_ended', ended)
  answer = Cascade(CHEAP, DEAR, Window(high=0.6))(MODEL, variables, batch[0])
  size = 1 << (int(answer.went_on.sum()) - 1).bit_length()
  assert seen == [(CHEAP, 2, EXAMPLES), (DEAR, 2, min(size, EXAMPLES))]
  assert size < EXAMPLES
  seen.clear()
  Cascade(CHEAP, DEAR, Window(0, 0))(MODEL, variables, batch[0])
  assert len(seen) == 1


def test_shared_sites_are_those_before_the_first_that_differs():
  assert [shared_sites(MODEL, '1000', dear) for dear in ('0000', '1100', '1001')] == [0, 1, 3]
  gates = ('residual', 'sub_activation')
  inner = MLP(2, width=4, hidden=4, num_classes=2, gates=gates, num_chunks=2)
  assert shared_sites(inner, '1010', '1011') == 1
  with pytest.raises(UserError, match='from 1000 to 1001, which are one network: expected two'):
    shared_sites(inner, '1000', '1001')  # the inner gate of a site that is off


def test_two_pools(random_pool, variables, batch, said):
  """Networks that were trained alone; also of the same structure."""
  x, y = batch
  other = random_pool(MODEL, x, seed=1)
  cascade = Cascade(CHEAP, CHEAP, Window(high=0.6), average=True)
  expected = by_hand((said[0], probabilities(other, x, CHEAP)), y, 0, 0.6, average=True)
  answer = cascade(MODEL, (variables, other), x)
  np.testing.assert_allclose(np.exp(answer.log_probabilities), expected[0], **CLOSE)
  found = cascade.evaluate(MODEL, [variables, other], batch)
  assert found.scores['loss'] == pytest.approx(expected[2], rel=1e-5)
  flops = aj.measure(MODEL, x).flops(CHEAP)
  assert found.flops == pytest.approx(flops * (1 + expected[1].mean()))


def test_more_examples_than_a_batch(variables):
  random = np.random.default_rng(1)
  x = random.normal(size=(BATCH + 7, 6)).astype(np.float32)
  y = random.integers(0, 3, BATCH + 7).astype(np.int32)
  cascade = Cascade(CHEAP, DEAR, Window(high=0.6))
  answer = cascade(MODEL, variables, x)
  loss = -answer.log_probabilities[np.arange(len(y)), y].astype(np.float64).mean()
  assert cascade.evaluate(MODEL, variables, (x, y)).scores['loss'] == pytest.approx(loss)


def test_images(random_pool):
  """A stream of several axes, and a network whose sites change its shape."""
  model = ConvNet((4, 8), num_classes=3)
  x = np.random.default_rng(0).normal(size=(9, 8, 8, 1)).astype(np.float32)
  pool, n = random_pool(model, x), model.space.num_gates
  both = [np.asarray(jax.nn.softmax(static(model, pool, x, (on,) * n))) for on in (0, 1)]
  confidence = np.sort(both[0].max(1))
  high = float(confidence[3:5].mean())
  answer = Cascade((0,) * n, (1,) * n, Window(high=high))(model, pool, x)
  on = both[0].max(1) < high
  assert answer.went_on.sum() == on.sum() == 4
  expected = np.where(on[:, None], both[1], both[0])
  np.testing.assert_allclose(np.exp(answer.log_probabilities), expected, rtol=1e-4, atol=1e-5)


def test_chosen_by_accuracy(variables, batch):
  task, cascade = Task('classification', rank_by='accuracy'), Cascade(CHEAP, DEAR)
  curve = cascade.curve(MODEL, variables, batch, task=task)
  score = lambda window: dataclasses.replace(cascade, window=window).evaluate(
    MODEL, variables, batch, task=task
  )
  found = score(curve.cheapest())
  assert found.scores['accuracy'] >= curve.dear['accuracy']
  assert found.flops < curve.flops[-1]
  assert score(curve.within(np.inf)).scores['accuracy'] == max(curve.scores['accuracy'])


def test_what_is_refused(variables, batch):
  x, y = batch
  with pytest.raises(UserError, match="confidence 'entropy': expected one of probability, margin"):
    Cascade(CHEAP, DEAR, confidence='entropy')
  with pytest.raises(UserError, match=r'window from 0\.5 to 0\.2: expected 0 ≤ low ≤ high'):
    Window(0.5, 0.2)
  with pytest.raises(UserError, match='a cascade of a regression: expected classification'):
    Cascade(CHEAP, DEAR).evaluate(MODEL, variables, (x, np.eye(3)[y]), task='regression')
  with pytest.raises(UserError, match='a cascade of 3 pools: expected'):
    Cascade(CHEAP, DEAR)(MODEL, [variables] * 3, x)
  curve = Cascade(CHEAP, DEAR).curve(MODEL, variables, batch)
  with pytest.raises(UserError, match='10 FLOPs: expected at least'):
    curve.within(10.0)
  none = Curve(
    [Window(0, 0)],
    np.zeros(1),
    {'loss': np.ones(1)},
    np.ones(1),
    {'loss': 0.5},
    Task('classification'),
  )
  with pytest.raises(UserError, match=r'loss 1 at best, not 0\.5; expected average=False'):
    none.cheapest()
