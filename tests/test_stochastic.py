"""Random structures: per example against the masked form, rescaling against its expectation, Exp 3.

A new model joins `ROWS` with one row.
"""

import functools
import itertools
import json
import shutil
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import tiny

from additive_jax import Additive, UserError, conditional, masked, placement, samplers, static
from additive_jax.data import ArraySplit
from additive_jax.experiments import stochastic
from additive_jax.experiments.stochastic_tables import expected_flops
from additive_jax.gradients import Draw, Recipe, averaged_gradient
from additive_jax.models import MLP, Transformer
from additive_jax.models.additive import gate_names, measure
from additive_jax.objectives import classification
from additive_jax.run import gathered, sampled
from additive_jax.structure import all_bits
from additive_jax.subsets import Subsets, as_gates, draw, in_stages, size
from additive_jax.train import State, Trainer, init_state

# The same float32 operations on values of order one, fused differently; see test_run.
CLOSE = {'rtol': 2e-5, 'atol': 2e-5}
# A gradient sums over all examples and outputs, with as much cancellation.
CLOSE_GRADIENT = {'rtol': 1e-4, 'atol': 1e-4}
BATCH = 8


class Affine(Additive):
  """Every part is affine, so that its mean over structures is that of independent draws."""

  num_classes: int = 3

  def setup(self):
    self.embed = nn.Dense(5, name='embed')
    self.sites = [nn.Dense(5, name=f'site_{i}') for i in range(3)]
    self.readout = nn.Dense(self.num_classes, name='readout')


class Row(NamedTuple):
  model: nn.Module
  x: Any
  rates: tuple


VECTORS = np.random.default_rng(5).normal(size=(BATCH, 6)).astype(np.float32)
BYTES = np.random.default_rng(5).integers(0, 11, (BATCH, 4)).astype(np.uint8)
ROWS = {
  'mlp': Row(MLP(3, 8, 8, 3), VECTORS, (0.5, 0.25, 0.75)),
  'mlp, all and none': Row(MLP(3, 8, 8, 3), VECTORS, (1.0, 0.5, 0.0)),
  'mlp of inner gates': Row(
    MLP(2, 8, 8, 3, gates=('sub_activation', 'lane'), num_chunks=2),
    VECTORS,
    (0.5, 1.0, 0.25, 0.5),
  ),
  'transformer of every gate': Row(
    Transformer(
      1,
      8,
      2,
      8,
      11,
      num_tokens=11,
      causal=True,
      gates=('residual', 'sub_activation', 'lane'),
      num_chunks=3,
    ),
    BYTES,
    (0.5, 0.75, 0.5, 0.25, 1.0, 0.5),
  ),
}


@pytest.fixture(params=ROWS)
def row(request):
  return ROWS[request.param]


def scales_of(rates):
  return samplers.inverse(np.asarray(rates, np.float32))


# The subsets themselves.


def test_subsets_have_their_size_and_every_one_is_as_likely():
  rates, draws = (0.5, 0.3, 0.0, 1.0), 3000
  assert [size(rate, 4) for rate in rates] == [2, 1, 0, 4]
  assert size(0.625, 4) == 3  # 2.5: halves go up
  program = jax.jit(jax.vmap(lambda key: draw(key, rates, 4)))
  found = program(jax.random.split(jax.random.key(0), draws))
  assert [rows.shape for rows in found] == [(draws, k) for k in (2, 1, 0, 4)]
  pairs, counts = np.unique(np.sort(found[0]), axis=0, return_counts=True)
  assert pairs.tolist() == [list(pair) for pair in itertools.combinations(range(4), 2)]
  # Five standard deviations of a share of independent draws.
  np.testing.assert_allclose(counts / draws, 1 / 6, atol=5 * np.sqrt(1 / 6 * 5 / 6 / draws))
  # Gates are independent: given that gate 1 runs on example 0, gate 0 does half the time.
  own = np.asarray(found[1])[:, 0] == 0
  share = (np.asarray(found[0])[own] == 0).any(1).mean()
  np.testing.assert_allclose(share, 0.5, atol=5 * 0.5 / np.sqrt(own.sum()))


def test_parts_are_drawn_wherever_they_are():
  """Devices that hold some of the parts draw what one device draws for all."""
  key, rates = jax.random.key(3), (0.5, 0.25)
  whole = np.asarray(as_gates(draw(key, rates, 4, parts=4), 16))
  assert whole.reshape(4, 4, 2).sum(1).tolist() == [[2, 1]] * 4
  halves = [as_gates(draw(key, rates, 4, parts=2, first=first), 8) for first in (0, 2)]
  np.testing.assert_array_equal(np.concatenate(halves), whole)
  assert len({part.tobytes() for part in whole.reshape(4, 4, 2)}) > 1


def test_stages_follow_the_ramp():
  sampler = samplers.make_sampler('bernoulli', 2, 1, gate_keep_rates=(0.2, 0.6), ramp_steps=8)
  plan = in_stages(sampler.rates, 20, 8, stages=2, parts=2)
  assert plan.starts == (0, 4, 8)
  # In the middle of a stage: after 1.5 and 5.5 of the 8 steps.
  want = [[1 - done / 8 * 0.8, 1 - done / 8 * 0.4] for done in (1.5, 5.5, 8)]
  np.testing.assert_allclose(plan.keep_rates, want, atol=1e-6)
  assert [int(plan.stage(step)) for step in (0, 3, 4, 7, 8, 19)] == [0, 0, 1, 1, 2, 2]
  step = samplers.make_sampler(
    'bernoulli', 2, 1, gate_keep_rates=(0.2, 0.6), ramp_steps=8, ramp_shape='step'
  )
  plan = in_stages(step.rates, 20, 8, stages=4)
  assert plan == Subsets(((1.0, 1.0), (0.2, 0.6)), (0, 8))
  assert in_stages(samplers.Uniform(2, 1).rates, 20, 0, 4) == Subsets(((0.5, 0.5),))
  assert plan.probabilities(1, 8) == (0.25, 0.625)  # 1.6 and 4.8 of 8


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: Subsets(((0.5, 1.5),)), r'keep rate 1.5: expected a number in \[0, 1\]'),
    (lambda: Subsets(((float('nan'),),)), r'keep rate nan: expected a number in \[0, 1\]'),
    (lambda: Subsets(((0.5,), (0.5,)), (0, 0)), r'2 rows .* steps \(0, 0\): expected one row'),
    (lambda: Subsets(((0.5,), (0.5, 0.5)), (0, 1)), r'rows of \[1, 2\] keep rates: expected as'),
    (lambda: Subsets(((0.5,),), parts=0), '0 parts of a batch: expected at least 1'),
    (lambda: Subsets(((0.5,),), parts=3).rows(8), 'a batch of 8 in 3 parts: expected parts that'),
    (lambda: in_stages(len, 8, 4, 0), '0 stages of a ramp: expected at least 1'),
    (lambda: run_sampled((0.5, 0.5)), '2 keep rates: expected 3, one per gate'),
    (lambda: run_sampled((0.5, -0.1, 1)), r'keep rate -0.1: expected a number in \[0, 1\]'),
    (lambda: run_sampled((0.5,) * 3, parts=5), 'a batch of 8 in 5 parts'),
  ],
)
def test_bad_subsets(make, message):
  with pytest.raises(UserError, match=message):
    make()


def run_sampled(rates, **options):
  return sampled(ROWS['mlp'].model, None, VECTORS, jax.random.key(0), rates, **options)


# One run.


def test_per_sample_is_the_masked_run_of_the_same_gates(row, random_pool):
  """Outputs and gradients, of programs that have nothing in common but the model's parts."""
  variables = random_pool(row.model, row.x)
  scales = np.linspace(1.5, 3, len(row.rates)).astype(np.float32)
  shape = jax.eval_shape(lambda v: static(row.model, v, row.x, (True,) * len(row.rates)), variables)
  target = jax.random.normal(jax.random.key(2), shape.shape)

  def program(run, gates_of):
    def loss(variables, chosen):
      outputs = run(row.model, variables, row.x, gates_of(chosen), scales=scales)
      return jnp.square(outputs - target).sum(), outputs

    return jax.jit(jax.grad(loss, has_aux=True))

  own = program(gathered, lambda chosen: chosen)
  oracle = program(masked, lambda chosen: as_gates(chosen, BATCH))
  seen = set()
  for seed in range(3):
    chosen = draw(jax.random.key(seed), row.rates, BATCH)
    gates = np.asarray(as_gates(chosen, BATCH))
    assert gates.sum(0).tolist() == [size(rate, BATCH) for rate in row.rates]
    seen.add(gates.tobytes())
    (gradient, outputs), (want_gradient, want) = own(variables, chosen), oracle(variables, chosen)
    np.testing.assert_allclose(outputs, want, **CLOSE)
    close = functools.partial(np.testing.assert_allclose, **CLOSE_GRADIENT)
    jax.tree.map(close, gradient, want_gradient)
    moved = jax.tree.map(lambda leaf: np.abs(leaf).max(), want_gradient)
    assert max(jax.tree.leaves(moved)) > 0.1
  assert len(seen) == 3


def test_sampled_draws_what_subsets_draw(random_pool):
  model, x, rates = ROWS['mlp']
  variables, key = random_pool(model, x), jax.random.key(7)
  for parts in (1, 2):
    chosen = draw(key, rates, BATCH // parts, parts=parts)
    got = sampled(model, variables, x, key, rates, parts=parts)
    np.testing.assert_allclose(got, masked(model, variables, x, as_gates(chosen, BATCH)), **CLOSE)
  other = sampled(model, variables, x, jax.random.key(8), rates, parts=2)
  assert np.abs(got - other).max() > 0.02


def test_a_gate_costs_its_share_of_the_batch(random_pool):
  """By XLA's count: nothing for an empty subset, and half a site for half of the examples."""
  model, x, _ = ROWS['mlp']
  variables = random_pool(model, x)

  def program(sizes):
    subsets = [jnp.arange(count) for count in sizes]
    return jax.jit(lambda v: gathered(model, v, x, subsets)).lower(variables)

  flops = lambda *sizes: program(sizes).cost_analysis()['flops']
  full = flops(8, 8, 8)
  site = (full - flops(0, 0, 0)) / 3
  np.testing.assert_allclose(full - flops(8, 0, 8), site, rtol=0.02)  # fusions differ a little
  np.testing.assert_allclose(full - flops(8, 4, 8), site / 2, rtol=0.05)
  np.testing.assert_allclose(full, model_flops(model, variables, x), rtol=0.02)
  assert 'scatter' not in program((8, 0, 8)).as_text()
  assert 'scatter' in program((8, 4, 8)).as_text()


def model_flops(model, variables, x):
  return jax.jit(lambda v: static(model, v, x, '111')).lower(variables).cost_analysis()['flops']


def test_conditional_is_the_static_structure_with_the_same_scales(row, random_pool):
  variables, rates = random_pool(row.model, row.x), np.asarray(row.rates)
  scales = np.linspace(1.5, 3, len(rates)).astype(np.float32)
  program = jax.jit(lambda v, b: conditional(row.model, v, row.x, b, scales=scales))
  drawn = np.asarray(samplers.Uniform(len(rates), 3)(jax.random.key(1), jnp.int32(0)))
  for bits in drawn:
    want = static(row.model, variables, row.x, tuple(bits), scales=scales)
    np.testing.assert_allclose(program(variables, bits), want, **CLOSE)
  if any(name.endswith('residual') for name in gate_names(row.model)):
    ones = static(row.model, variables, row.x, (True,) * len(rates))
    scaled = static(row.model, variables, row.x, (True,) * len(rates), scales=scales)
    assert np.abs(ones - scaled).max() > 0.02


# Rescaling.


def mean_over_structures(model, variables, x, rates, scales):
  """Σ over all structures of probability times outputs."""
  bits = all_bits(len(rates))
  weights = np.where(bits, rates, 1 - np.asarray(rates)).prod(1)
  outputs = [conditional(model, variables, x, jnp.asarray(row), scales=scales) for row in bits]
  return np.tensordot(weights, np.asarray(outputs, float), 1)


def test_inverse_scales_are_unbiased_over_structures(random_pool):
  """Exactly so for one site before an affine readout, and for affine sites; not through others."""
  affine, x = Affine(), VECTORS
  variables, rates = random_pool(affine, x), (0.3, 0.8, 0.5)
  want = static(affine, variables, x, '111')
  got = mean_over_structures(affine, variables, x, rates, scales_of(rates))
  np.testing.assert_allclose(got, want, **CLOSE)
  plain = mean_over_structures(affine, variables, x, rates, None)
  assert np.abs(plain - want).max() > 0.1

  model = MLP(3, 8, 8, 3)
  variables = random_pool(model, x)
  last = (1.0, 1.0, 0.3)  # the stream after the last site, before the LayerNorm of the readout
  streams = lambda variables: Stream(model).apply(variables, x)
  want = static(Stream(model), variables, x, '111')
  got = mean_over_structures(Stream(model), variables, x, last, scales_of(last))
  np.testing.assert_allclose(got, want, **CLOSE)
  np.testing.assert_allclose(streams(variables), want, **CLOSE)
  biased = mean_over_structures(Stream(model), variables, x, rates, scales_of(rates))
  assert np.abs(biased - want).max() > 0.02


class Stream(Additive):
  """A model with its stream for outputs."""

  of: nn.Module = None

  def setup(self):
    self.stem = nn.Dense(self.of.width, name='embed')
    inner = self.of
    self.sites = [
      type(site)(site.hidden, site.kinds, site.num_chunks, site.lanes, name=site.name)
      for site in _sites(inner)
    ]

  def embed(self, x):
    return self.stem(x)

  def readout(self, h):
    return h


def _sites(model):
  found = []
  jax.eval_shape(
    lambda key: model.init(key, method=lambda module: found.extend(module.sites)), jax.random.key(0)
  )
  return found


def test_inverse_scales_are_unbiased_per_sample(random_pool):
  model, x, rates, draws = Affine(), VECTORS, (0.3, 0.8, 0.5), 4000
  exact = Subsets((rates,)).probabilities(0, BATCH)
  assert exact == (0.25, 0.75, 0.5)  # 2.4 and 6.4 of 8
  variables = random_pool(model, x)
  one = lambda key: sampled(model, variables, x, key, rates, scales=scales_of(exact))
  outputs = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), draws)))
  want = np.asarray(static(model, variables, x, '111'))
  # Five standard errors of each mean.
  error = 5 * outputs.std(0) / np.sqrt(draws)
  assert (np.abs(outputs.mean(0) - want) < error).all()
  # The nominal rates are not the ones that are drawn.
  nominal = lambda key: sampled(model, variables, x, key, rates, scales=scales_of(rates))
  biased = np.asarray(jax.jit(jax.vmap(nominal))(jax.random.split(jax.random.key(0), draws)))
  assert (np.abs(biased.mean(0) - want) > error).any()


def test_a_gate_that_is_never_on_is_not_divided_by_zero():
  np.testing.assert_array_equal(scales_of([0.0, 0.5, 1.0]), [0, 2, 1])
  assert np.isfinite(jax.grad(lambda p: samplers.inverse(p).sum())(jnp.array([0.0, 0.5]))).all()


# Training.

MODEL = MLP(3, 8, 8, 3)
TRAIN = ArraySplit(
  np.random.default_rng(0).normal(size=(29, 6)).astype(np.float32),
  np.random.default_rng(1).integers(0, 3, 29).astype(np.int32),
)
PLAN = Subsets(((1.0, 0.75, 0.5), (0.75, 0.5, 0.25)), (0, 4), parts=2)
OPTIONS = {'distill': 0.3, 'rescale': 'inverse', 'subsets': PLAN}
RECIPE = Recipe(MODEL, classification, optax.sgd(0.1, momentum=0.9), **OPTIONS)


def test_gradient_of_a_step_is_that_of_the_masked_form(random_pool):
  """Two slots, each with subsets of its own, rescaled and distilled, against one loss by hand; in
  both stages of one program."""
  x, y = TRAIN.x[:16].reshape(2, 8, 6), TRAIN.y[:16].reshape(2, 8)
  params = random_pool(MODEL, x[0])['params']
  keys = jax.random.split(jax.random.key(4), 2)

  @functools.partial(jax.jit, static_argnums=2)
  def own(params, gates, stage):
    scales = scales_of(PLAN.probabilities(stage, 8))

    def loss(params):
      losses = []
      for slot in range(2):
        logits = masked(MODEL, {'params': params}, x[slot], gates[slot], scales=scales)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, y[slot])
        teacher = jax.lax.stop_gradient(static(MODEL, {'params': params}, x[slot], '111'))
        apart = jax.nn.log_softmax(teacher) - jax.nn.log_softmax(logits)
        mixed = 0.7 * entropy + 0.3 * (jax.nn.softmax(teacher) * apart).sum(-1)
        losses.append(jnp.where(gates[slot].all(1), entropy, mixed).mean())
      return sum(losses) / 2, jnp.stack(losses)

    return jax.grad(loss, has_aux=True)(params)

  bits = jnp.ones((2, 3), bool)
  program = jax.jit(
    lambda params, step: averaged_gradient(RECIPE, params, bits, (x, y), draw=Draw(keys, step))
  )
  gradients = []
  for stage, step in enumerate(PLAN.starts):
    rates = PLAN.keep_rates[stage]
    gates = jnp.stack([as_gates(draw(key, rates, 4, parts=2), 8) for key in keys])
    assert np.ptp(gates, axis=0).any()
    want, want_loss = own(params, gates, stage)
    got, loss, finite, _ = program(params, jnp.int32(step))
    assert finite.all()
    np.testing.assert_allclose(loss, want_loss, rtol=1e-5)  # one float32 mean
    jax.tree.map(functools.partial(np.testing.assert_allclose, **CLOSE_GRADIENT), got, want)
    gradients.append(got)
  gap = jax.tree.map(lambda a, b: np.abs(a - b).max(), *gradients)
  assert max(jax.tree.leaves(gap)) > 0.01
  assert program._cache_size() == 1


def test_conditional_gradient_is_rescaled_by_the_rates(random_pool):
  x, y = TRAIN.x[None, :8], TRAIN.y[None, :8]
  params, bits = random_pool(MODEL, x[0])['params'], jnp.array([[True, False, True]])
  rates = jnp.array([0.5, 0.0, 0.8])
  recipe = Recipe(MODEL, classification, optax.sgd(0.1), rescale='inverse')
  draw_ = Draw(jax.random.split(jax.random.key(0), 1), jnp.int32(0), rates)
  got = jax.jit(lambda p: averaged_gradient(recipe, p, bits, (x, y), draw=draw_).gradient)(params)

  def by_hand(params):
    outputs = static(MODEL, {'params': params}, x[0], '101', scales=[2.0, 1.0, 1.25])
    return classification(outputs, y[0])[0].mean()

  close = functools.partial(np.testing.assert_allclose, **CLOSE_GRADIENT)
  jax.tree.map(close, got, jax.grad(by_hand)(params))


def trainer(recipe, mesh, sampler=None, **options):
  devices = jax.devices()[: mesh[0] * mesh[1]]
  mesh = jax.make_mesh(
    mesh, ('structure', 'data'), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=devices
  )
  sampler = sampler or samplers.listed(['111'], 3, 4)
  options = {'batch_size': 8, 'seed': 3, 'chunk_steps': 5} | options
  return Trainer(recipe, TRAIN, sampler, mesh=mesh, **options)


@pytest.fixture(scope='module')
def uninterrupted():
  one = trainer(RECIPE, (1, 1))
  return one.run(7)['loss'], placement.to_host(one.state)


def test_many_devices_are_one(uninterrupted):
  """Four slots over two devices, whose batches two more split by whole parts."""
  many = trainer(RECIPE, (2, 2))
  loss = many.run(7)['loss']
  # Seven steps of float32, each of which multiplies rounding by at most a little.
  np.testing.assert_allclose(loss, uninterrupted[0], rtol=1e-4)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, placement.to_host(many.state.params), uninterrupted[1].params)
  assert np.ptp(loss, axis=1).min() > 1e-3


def test_an_interruption_changes_no_bit(uninterrupted):
  """Stopped within a stage, and again where one ends."""
  state, losses = None, []
  for count in (2, 2, 3):
    part = trainer(RECIPE, (1, 1), state=state)
    losses.append(part.run(count)['loss'])
    state = State(*placement.to_host(part.state))
  np.testing.assert_array_equal(np.concatenate(losses), uninterrupted[0])
  jax.tree.map(np.testing.assert_array_equal, state, uninterrupted[1])


def test_other_rates_over_time_compile_nothing(compiles):
  make = functools.partial(samplers.make_sampler, 'bernoulli', 3, 4)
  recipe = Recipe(MODEL, classification, optax.sgd(0.1), rescale='inverse')
  state = init_state(recipe, MODEL.init(jax.random.key(0), TRAIN.x[:1]))
  run = lambda sampler: trainer(recipe, (1, 1), sampler, state=state).run(4)['loss']
  losses = [run(make(keep_rate=0.5))]
  del compiles[:]
  losses.append(run(make(keep_rate=0.2, keep_ramp='linear', ramp_steps=3)))
  losses.append(run(make(gate_keep_rates=(0.2, 1, 0), ramp_steps=3, ramp_shape='cosine')))
  assert len(compiles) == 0
  assert len({loss.tobytes() for loss in losses}) == 3


BERNOULLI = samplers.make_sampler('bernoulli', 3, 4)


@pytest.mark.parametrize(
  ('recipe', 'arguments', 'message'),
  [
    (OPTIONS, {'sampler': BERNOULLI}, 'structures of Bernoulli for subsets per sample: expected'),
    (OPTIONS, {'sampler': samplers.listed(['101'] * 4, 3)}, 'structures of Listed for subsets'),
    (OPTIONS, {'batch_size': 7}, 'a batch of 7 in 2 parts: expected parts that divide'),
    (OPTIONS, {'mesh': (1, 4)}, '4 devices split a batch of 2 parts with a subset each: expected'),
    ({'subsets': Subsets(((0.5,),))}, {}, '1 keep rates: expected 3, one per gate'),
    ({'rescale': 'inverse'}, {}, "rescale 'inverse' of the structures of Listed: expected a"),
  ],
)
def test_draws_that_cannot_be(recipe, arguments, message):
  with pytest.raises(UserError, match=message):
    trainer(Recipe(MODEL, classification, optax.sgd(0.1), **recipe), **{'mesh': (1, 1)} | arguments)


def test_unknown_rescaling():
  with pytest.raises(UserError, match="rescale 'half': expected one of none, inverse"):
    Recipe(MODEL, classification, optax.sgd(0.1), rescale='half')


# The experiment.

CHOSEN = {
  'sampler.name': 'bernoulli',
  'sampler.keep_ramp': 'linear',
  'sampler.ramp': 0.5,
  'sampler.ramp_shape': 'step',
  'stochastic.rescale': 'inverse',
  'train.structures_per_step': 1,
}


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tmp_path_factory.getbasetemp() / 'programs'):
    yield


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('stochastic') / 'run'
  return stochastic.run(tiny.config('stochastic', CHOSEN), workdir, devices=1), workdir


def records_of(workdir):
  lines = (workdir / 'journals' / stochastic.JOURNAL).read_text().splitlines()
  return [json.loads(line) for line in lines]


NAMES = ['none', 'conditional', 'conditional_equal_flops', 'per_sample', 'per_sample_equal_flops']


def test_what_a_run_leaves(done):
  result, workdir = done
  assert result.variants['variant'].tolist() == NAMES
  assert sorted(result.table['structure']) == sorted(f'{i:03b}' for i in range(8))
  first = ['structure', 'loss', 'accuracy', 'loss_ci95', 'flops', 'params', 'rank']
  assert list(result.table)[:7] == first
  assert result.table['loss'].is_monotonic_increasing
  page = (workdir / 'report.html').read_text()
  for text in ('paired by seed', 'Keep rates and training', 'All structures of each pool', '±'):
    assert text in page
  assert page.index('<svg') < page.index('<table')
  assert set(result.summary['variants']) == set(NAMES)
  assert result.summary['num_seeds'] == 2


def test_tables_are_those_of_the_journal(done):
  """Means, gaps, and differences that are paired by seed, from the numbers of each seed."""
  result, workdir = done
  records = {(r['seed'], r['variant']): r for r in records_of(workdir)}
  rows = result.variants.set_index('variant')
  table = result.table.set_index('structure')
  full = [records[seed, 'none']['loss'][7] for seed in (0, 1)]
  for name in NAMES:
    own = [records[seed, name] for seed in (0, 1)]
    loss = np.array([r['loss'][7] for r in own])
    assert rows.loc[name, 'loss'] == pytest.approx(loss.mean())
    gap = np.mean(loss - [r['train_loss'] for r in own])
    assert rows.loc[name, 'loss_gap'] == pytest.approx(gap)
    every = np.mean([r['accuracy'] for r in own])
    assert rows.loc[name, 'structures_accuracy'] == pytest.approx(every)
    column = 'loss' if name == 'conditional' else f'{name}_loss'
    assert table.loc['100', column] == pytest.approx(np.mean([r['loss'][1] for r in own]))
    if name != 'none':
      apart = loss - full
      assert rows.loc[name, 'loss_minus_none'] == pytest.approx(apart.mean())
      # Student's t of one degree of freedom at 97.5 %.
      half = 12.7062 * np.std(apart, ddof=1) / np.sqrt(2)
      assert rows.loc[name, 'loss_minus_none_ci95'] == pytest.approx(half, rel=1e-4)
  assert np.isnan(rows.loc['none', 'loss_minus_none'])


def test_variants_spend_what_they_say(done):
  """Equal epochs, or equal FLOPs to the nearest step."""
  result, _ = done
  rows = result.variants.set_index('variant')
  full = rows.loc['none', 'training_flops']
  assert rows.loc[['conditional', 'per_sample'], 'steps'].tolist() == [15, 15]
  for mode in ('conditional', 'per_sample'):
    assert rows.loc[mode, 'training_flops'] < 0.95 * full
    one_step = full / 15
    assert abs(rows.loc[f'{mode}_equal_flops', 'training_flops'] - full) < 1.5 * one_step


def test_pools_start_alike_and_end_apart(done):
  records = {(r['seed'], r['variant']): r['loss'] for r in records_of(done[1])}
  for seed in (0, 1):
    losses = [tuple(records[seed, name]) for name in NAMES]
    assert len(set(losses)) == len(NAMES)
  assert records[0, 'none'] != records[1, 'none']


def test_expected_flops_are_the_mean_over_structures():
  model = MLP(2, 8, 8, 3, gates=('residual', 'sub_activation'), num_chunks=3)
  space = measure(model, VECTORS[:1])
  rates = np.random.default_rng(0).uniform(size=space.num_gates)
  bits = all_bits(space.num_gates)
  weights = np.where(bits, rates, 1 - rates).prod(1)
  want = weights @ space.costs(bits)[0]
  np.testing.assert_allclose(expected_flops(space, rates), want, rtol=1e-12)
  np.testing.assert_allclose(expected_flops(space, [rates, rates * 0])[0], want, rtol=1e-12)


def test_a_killed_run_goes_on(done, tmp_path):
  """Within a line of the journal, with one pool in the middle of its training and one not begun."""
  result, workdir = done
  folder = tmp_path / 'run' / 'checkpoints'
  tiny.killed_copy(workdir, tmp_path / 'run', stochastic.JOURNAL, 3, b'{"seed": 0, "vari')
  for step in ('10', '15'):
    shutil.rmtree(folder / 'per_sample-seed1' / step)
  shutil.rmtree(folder / 'none-seed1')
  again = stochastic.run(tiny.config('stochastic', CHOSEN), tmp_path / 'run', devices=1)
  assert records_of(tmp_path / 'run') == records_of(workdir)
  for name in ('table', 'variants'):
    pd.testing.assert_frame_equal(getattr(again, name), getattr(result, name), check_exact=True)


def test_a_finished_run_changes_nothing(done):
  result, workdir = done
  before = tiny.contents(workdir)
  again = stochastic.run(tiny.config('stochastic', CHOSEN), workdir, devices=1)
  assert tiny.contents(workdir) == before
  pd.testing.assert_frame_equal(again.variants, result.variants, check_exact=True)


def test_number_of_devices(done, tmp_path):
  """Four split each batch."""
  options = CHOSEN | {'stochastic.modes': ('conditional',)}
  many = stochastic.run(tiny.config('stochastic', options), tmp_path / 'run', devices=4)
  want = done[0].variants[:3]
  assert many.variants['variant'].tolist() == want['variant'].tolist() == NAMES[:3]
  # The same gradients, added up in another order, over 15 to 20 float32 steps.
  np.testing.assert_allclose(many.variants['loss'], want['loss'], rtol=2e-5)


def test_distilled_and_a_sample_of_the_structures(tmp_path):
  options = CHOSEN | {
    'num_seeds': 1,
    'train.distill': 0.5,
    'stochastic.modes': ('per_sample',),
    'stochastic.num_structures': 5,
    'stochastic.parts': 2,
    'sampler.ramp': 0.0,
    'train.epochs': 1.0,
  }
  result = stochastic.run(tiny.config('stochastic', options), tmp_path / 'run', devices=2)
  names = result.variants['variant'].tolist()
  assert names[:3] == ['none', 'per_sample', 'per_sample_equal_flops']
  assert 'per_sample_distilled' in names
  assert len(set(result.table['structure'])) == 5
  assert '111' in set(result.table['structure'])
  rows = result.variants.set_index('variant')
  assert rows.loc['per_sample_distilled', 'loss'] != rows.loc['per_sample', 'loss']
  # The teacher costs a forward pass of the full network.
  extra = (
    rows.loc['per_sample_distilled', 'training_flops'] - rows.loc['per_sample', 'training_flops']
  )
  assert extra == pytest.approx(rows.loc['none', 'training_flops'] / 3)
  page = (tmp_path / 'run' / 'report.html').read_text()
  assert 'over the seeds' not in page


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'stochastic.modes': ('pairs',)}, "config.stochastic.modes ('pairs',): expected some of cond"),
    ({'stochastic.modes': ()}, 'config.stochastic.modes (): expected some of conditional'),
    ({'stochastic.rescale': 'half'}, "rescale 'half': expected one of none, inverse"),
    ({'stochastic.parts': 3}, 'a batch of 16 in 3 parts: expected parts that divide'),
    ({'stochastic.stages': 0}, 'config.stochastic.stages 0: expected at least 1'),
    ({'sampler.keep_rate': 1.5}, 'keep rate 1.5: expected a number in [0, 1]'),
    ({'sampler.gate_keep_rates': (0.5, 2.0, 0.5)}, 'keep rate 2.0: expected a number in [0, 1]'),
    ({'sampler.keep_ramp': 'cubic'}, "keep-rate ramp 'cubic': expected one of uniform, linear"),
    ({'sampler.ramp_shape': 'cubic'}, "ramp shape 'cubic': expected one of linear, cosine, step"),
    ({'sampler.ramp': 1.5}, 'sampler.ramp 1.5: expected a share of the run in [0, 1]'),
    ({'sampler.name': 'sorted'}, "config.sampler.name 'sorted' for random structures: expected"),
    ({'train.distill': 2.0}, 'distill 2.0: expected a weight in [0, 1]'),
    ({'shard': '0/2'}, "config.shard '0/2': expected none"),
    ({'data.memory_limit': 100}, 'is larger than config.data.memory_limit 100'),
  ],
)
def test_what_cannot_be_leaves_no_file(tmp_path, options, message):
  with pytest.raises(UserError) as caught:
    stochastic.run(tiny.config('stochastic', CHOSEN | options), tmp_path / 'run', devices=1)
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'run').exists()
