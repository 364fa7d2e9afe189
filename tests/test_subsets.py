"""Random structures per example against the masked form, and rescaling against its expectation.

A new model joins `ROWS` with one row.
"""

import functools
import itertools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from additive_jax import Additive, UserError, conditional, masked, static
from additive_jax.gates.structure import all_bits
from additive_jax.gates.subsets import Subsets, as_gates, draw, in_stages, size
from additive_jax.models import MLP, Transformer
from additive_jax.models.additive import gate_names
from additive_jax.run.ways import gathered, sampled
from additive_jax.train import samplers

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


@pytest.fixture(params=tiny.slow_but(['mlp', 'mlp of inner gates'], ROWS))
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


@pytest.mark.slow
def test_parts_are_drawn_wherever_they_are():
  """Devices that hold some of the parts draw what one device draws for all."""
  key, rates = jax.random.key(3), (0.5, 0.25)
  whole = np.asarray(as_gates(draw(key, rates, 4, parts=4), 16))
  assert whole.reshape(4, 4, 2).sum(1).tolist() == [[2, 1]] * 4
  halves = [as_gates(draw(key, rates, 4, parts=2, first=first), 8) for first in (0, 2)]
  np.testing.assert_array_equal(np.concatenate(halves), whole)
  assert len({part.tobytes() for part in whole.reshape(4, 4, 2)}) > 1


def test_stages_follow_the_ramp():
  sampler = samplers.KeepRates(by_gate=(0.2, 0.6), ramp_steps=8).sampler(2, 1)
  plan = in_stages(sampler.rates, 20, 8, stages=2, parts=2)
  assert plan.starts == (0, 4, 8)
  # In the middle of a stage: after 1.5 and 5.5 of the 8 steps.
  want = [[1 - done / 8 * 0.8, 1 - done / 8 * 0.4] for done in (1.5, 5.5, 8)]
  np.testing.assert_allclose(plan.keep_rates, want, atol=1e-6)
  assert [int(plan.stage(step)) for step in (0, 3, 4, 7, 8, 19)] == [0, 0, 1, 1, 2, 2]
  step = samplers.KeepRates(by_gate=(0.2, 0.6), ramp_steps=8, ramp_shape='step').sampler(2, 1)
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


@pytest.mark.slow
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


@pytest.mark.slow
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
  pool = random_pool(model, x)['params']
  variables = {'params': {name: tree for name, tree in pool.items() if name != 'readout'}}
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
      type(site)(site.hidden, site.kinds, site.num_chunks, site.num_lanes, name=site.name)
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
