"""The contract of every model: four ways to run each structure, one answer.

A new model joins with one row of `ROWS`.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from additive_jax import (
  Additive,
  Structure,
  UserError,
  all_structures,
  conditional,
  masked,
  shared_prefix,
  static,
)
from additive_jax.gates.structure import all_bits
from additive_jax.gates.traced import traced_structure
from additive_jax.models import MLP
from additive_jax.models.additive import gate_names

# Each way is the same chain of float32 operations on values of order one, fused differently: the
# last bits differ, a hundredfold of float32's 1.2e-7 at most through this few layers.
CLOSE = {'rtol': 2e-5, 'atol': 2e-5}
# A gradient sums over all examples and outputs, with as much cancellation.
CLOSE_GRADIENT = {'rtol': 1e-4, 'atol': 1e-4}


class TokenMixer(nn.Module):
  """Mixes tokens: a site that is no MLP."""

  @nn.compact
  def __call__(self, h):  # [B, T, D]
    return jnp.tanh(nn.Dense(h.shape[-2], name='mix')(h.swapaxes(-1, -2)).swapaxes(-1, -2))


class Wave(nn.Module):
  """A site without parameters."""

  def __call__(self, h):
    return jnp.sin(3 * h)


class Mixed(Additive):
  """A user's network: bytes in, next bytes out, sites of different kinds."""

  def setup(self):
    self.table = nn.Embed(11, 8, name='table')
    self.sites = [TokenMixer(name='mixer'), Wave(name='wave'), nn.Dense(8, name='plain')]
    self.readout = nn.Dense(11, name='head')

  def embed(self, x):
    return self.table(x)


class Row(NamedTuple):
  model: nn.Module
  x: Any  # inputs [B, ...]


IMAGES = jax.random.normal(jax.random.key(5), (4, 3, 2))
BYTES = np.random.default_rng(5).integers(0, 11, (4, 6)).astype(np.uint8)

ROWS = {
  'mlp of equal blocks': Row(MLP(3, 8, 16, 3), IMAGES),
  'mlp of unequal blocks': Row(MLP(3, 8, (3, 16, 9), 3), IMAGES),
  'mlp of one gate': Row(MLP(1, 8, 8, 3), IMAGES),
  'sites of different kinds': Row(Mixed(), BYTES),
}


class Case(NamedTuple):
  model: nn.Module
  x: Any
  variables: Any
  bits: np.ndarray  # all structures, [2^n, n]
  outputs: np.ndarray  # of the static way, [2^n, B, ..., C]


@pytest.fixture(scope='module')
def case_of(random_pool):
  @functools.cache
  def build(name):
    model, x = ROWS[name]
    variables = random_pool(model, x)
    num_gates = len(gate_names(model))
    outputs = np.stack([static(model, variables, x, s) for s in all_structures(num_gates)])
    return Case(model, x, variables, all_bits(num_gates), outputs)

  return build


@pytest.fixture(params=ROWS)
def case(request, case_of):
  return case_of(request.param)


def test_every_gate_matters(case):
  """What the other tests compare differs from structure to structure."""
  gaps = [np.abs(a - b).max() for i, a in enumerate(case.outputs) for b in case.outputs[:i]]
  assert min(gaps) > 0.02  # a thousand times the tolerance


def test_static_is_the_model_itself(case):
  for bits, want in zip(case.bits, case.outputs):
    got = case.model.apply(case.variables, case.x, tuple(bits))
    np.testing.assert_array_equal(got, want)


def test_conditional(case):
  run = jax.jit(lambda v, bits: conditional(case.model, v, case.x, bits))
  for bits, want in zip(case.bits, case.outputs):
    np.testing.assert_allclose(run(case.variables, jnp.asarray(bits)), want, **CLOSE)
  assert run._cache_size() == 1


def test_conditional_takes_an_integer(case_of):
  case = case_of('sites of different kinds')
  run = jax.jit(lambda v, value: conditional(case.model, v, case.x, value))
  for value, want in enumerate(case.outputs):
    np.testing.assert_allclose(run(case.variables, value), want, **CLOSE)
  assert run._cache_size() == 1


def test_masked(case):
  run = jax.jit(lambda v, gates: masked(case.model, v, case.x, gates))
  for bits, want in zip(case.bits, case.outputs):
    np.testing.assert_allclose(run(case.variables, bits.astype(np.float32)), want, **CLOSE)
  assert run._cache_size() == 1


def test_masked_takes_a_structure_in_any_form(case):
  n = case.model.space.num_gates
  one = Structure.from_int(1, num_gates=n)
  want = masked(case.model, case.variables, case.x, np.array(one.bits, float))
  for form in (one, str(one), 1):
    got = masked(case.model, case.variables, case.x, form)
    np.testing.assert_array_equal(got, want)


def test_masked_per_example(case):
  choice = np.random.default_rng(0).permutation(len(case.bits))[: len(case.x)]
  choice = np.resize(choice, len(case.x))
  gates = case.bits[choice].astype(np.float32)
  got = masked(case.model, case.variables, case.x, gates)
  want = case.outputs[choice, np.arange(len(case.x))]
  np.testing.assert_allclose(got, want, **CLOSE)


def test_shared_prefix(case):
  got = shared_prefix(case.model, case.variables, case.x, case.bits)
  np.testing.assert_allclose(got, case.outputs, **CLOSE)


@pytest.mark.slow
def test_gradients(case):
  """Of the first three ways; parameters of an off gate get exactly zero from each."""
  target = jax.random.normal(jax.random.key(2), case.outputs.shape[1:])
  loss = lambda outputs: jnp.square(outputs - target).sum()
  ways = {
    way: jax.jit(jax.grad(lambda v, s, run=run: loss(run(case.model, v, case.x, s))))
    for way, run in (('conditional', conditional), ('masked', masked))
  }
  first = None
  for bits in case.bits:
    plain = lambda v, s=tuple(bits): loss(static(case.model, v, case.x, s))
    want = jax.grad(plain)(case.variables)
    for way, gradient in ways.items():
      gates = jnp.asarray(bits) if way == 'conditional' else bits.astype(np.float32)
      got = gradient(case.variables, gates)
      close = functools.partial(np.testing.assert_allclose, **CLOSE_GRADIENT)
      jax.tree.map(close, got, want)
      for name, on in zip(gate_names(case.model), bits):
        site = got['params'].get(name.removesuffix('/residual'), {})
        assert on or not any(np.any(leaf) for leaf in jax.tree.leaves(site))
    first = want if first is None else first
  changed = jax.tree.map(lambda a, b: np.abs(a - b).max(), want, first)
  assert max(jax.tree.leaves(changed)) > 0.1
  assert all(gradient._cache_size() == 1 for gradient in ways.values())


def test_ways_are_different_programs(case):
  n = case.bits.shape[1]

  def conditionals(run, structure):
    program = jax.jit(lambda v, s: run(case.model, v, case.x, s))
    return program.lower(case.variables, structure).as_text().count('stablehlo.case')

  all_on = lambda model, v, x, s: static(model, v, x, (True,) * n)
  assert conditionals(all_on, None) == 0
  assert conditionals(masked, jnp.ones(n)) == 0
  assert conditionals(conditional, jnp.ones(n, bool)) == n


def test_compiled_program_keeps_its_conditionals(case_of):
  """XLA does not turn them into selections, which would compute every branch."""
  case = case_of('mlp of one gate')
  program = jax.jit(lambda v, bits: conditional(case.model, v, case.x, bits))
  assert ' conditional(' in program.lower(case.variables, jnp.ones(1, bool)).compile().as_text()
  vmapped = jax.jit(lambda v, bits: jax.vmap(lambda b: conditional(case.model, v, case.x, b))(bits))
  text = vmapped.lower(case.variables, jnp.ones((2, 1), bool)).compile().as_text()
  assert ' conditional(' not in text  # as the docstring of `conditional` warns


def test_soft_gates_interpolate(case_of):
  """The last site adds to a stream that only the linear readout reads, so a half gate is the mean
  of its two structures.
  """
  case = case_of('sites of different kinds')
  off, on = case.outputs[0b011], case.outputs[0b111]
  half = masked(case.model, case.variables, case.x, jnp.array([1, 1, 0.5]))
  np.testing.assert_allclose(half, (off + on) / 2, **CLOSE)


def test_masked_per_token(case_of):
  """The last site and the readout work token by token, so each token has its own structure."""
  case = case_of('sites of different kinds')
  last = np.random.default_rng(1).integers(0, 2, case.x.shape).astype(np.float32)
  gates = np.stack([np.ones_like(last), np.zeros_like(last), last], -1)
  off, on = case.outputs[0b001], case.outputs[0b101]
  got = masked(case.model, case.variables, case.x, gates)
  np.testing.assert_allclose(got, np.where(last[..., None] > 0, on, off), **CLOSE)
  assert 0 < last.sum() < last.size


def test_gates_are_differentiable(case_of):
  case = case_of('mlp of unequal blocks')
  total = lambda gates: masked(case.model, case.variables, case.x, gates).sum()
  slope = jax.grad(total)(jnp.zeros(3))
  step = 1e-2
  for i in range(3):
    gates = np.zeros(3, np.float32)
    gates[i] = step
    measured = (total(gates) - total(-gates)) / (2 * step)
    # A central difference: an error of step² relative, and rounding divided by the step.
    np.testing.assert_allclose(slope[i], measured, rtol=0.02, atol=0.01)
  assert np.abs(slope).min() > 0.05


MODEL, X = ROWS['mlp of equal blocks']


@pytest.mark.parametrize(
  ('run', 'structure', 'message'),
  [
    (static, '10', 'structure 10 has 2 gates: expected 3'),
    (static, 8, 'structure 8: expected an integer in'),
    (conditional, jnp.ones(2, bool), r'dtype bool and shape \(2,\): expected bool \[3\]'),
    (conditional, jnp.ones(3), r'dtype float32 and shape \(3,\): expected bool \[3\]'),
    (conditional, jnp.ones(3, int), r'dtype int32 and shape \(3,\): expected bool \[3\]'),
    (masked, jnp.ones(4), r'gates of shape \(4,\): expected 3 on the last axis'),
    (masked, '10', 'structure 10 has 2 gates: expected 3'),
    (masked, jnp.float32(1), r'gates of shape \(\): expected 3 on the last axis'),
    (shared_prefix, ['101', '11'], 'structure 11 has 2 gates: expected 3'),
    (shared_prefix, 5, r'structures 5: expected several, such as \[5\]'),
    (shared_prefix, [], 'an empty list of structures: expected at least one'),
  ],
)
def test_bad_structures(case_of, run, structure, message):
  variables = case_of('mlp of equal blocks').variables
  with pytest.raises(UserError, match=message):
    run(MODEL, variables, X, structure)


def test_integers_end_at_31_gates():
  model = MLP(32, 2, 2, 2)
  variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2)))
  run = lambda structure: jax.eval_shape(
    lambda v, bits: conditional(model, v, jnp.zeros((1, 2)), bits), variables, structure
  )
  assert run(jnp.ones(32, bool)).shape == (1, 2)
  with pytest.raises(UserError, match='or an integer scalar for at most 31 gates'):
    run(jnp.int32(1))


def test_gates_of_another_batch():
  model = MLP(2, 4, 4, 3)
  x = jnp.ones((4, 5))
  with pytest.raises(UserError, match=r'gates of shape \(3, 2\): expected 4 rows, one per example'):
    masked(model, model.init(jax.random.key(0), x), x, np.ones((3, 2)))


@pytest.mark.parametrize('value', [4, -1, np.int64(7), np.array(4), jnp.int32(4), 2**40])
def test_an_integer_outside_of_the_space(value):
  with pytest.raises(UserError, match=rf'structure {value}: expected an integer in \[0, 2\^2\)'):
    traced_structure(value, 2)
  assert jax.jit(lambda value: traced_structure(value, 2))(jnp.int32(6)).tolist() == [False, True]
