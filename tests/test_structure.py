"""Structures and spaces: forms, order, neighbours, names, costs, and the answers to bad input."""

import itertools

import numpy as np
import pytest

from additive_jax import Gate, Space, Structure, UserError, all_structures
from additive_jax.gates.structure import ENUMERABLE_GATES, all_bits, bits_of, parse


def test_forms_agree():
  structure = Structure.from_string('1011')
  assert str(structure) == '1011'
  assert int(structure) == 0b1101  # gate 0, the leftmost character, is bit 0
  assert structure == Structure.from_int(13, num_gates=4) == Structure((1, 0, 1, 1))
  assert int(Structure.from_string('100')) == 1
  assert (structure.num_gates, len(structure), structure.num_on) == (4, 4, 3)


def test_indexing_gives_python_bools():
  structure = Structure((1, np.int64(0), np.True_))
  assert all(type(bit) is bool for bit in structure)
  assert structure[0] is True
  assert structure[1] is False
  assert structure[-2:] == (False, True)
  np.testing.assert_array_equal(np.asarray(structure), [True, False, True])
  assert np.asarray(structure).dtype == bool
  np.testing.assert_array_equal(np.asarray(structure, np.float32), [1, 0, 1])


def test_frozen_and_hashable():
  structure = Structure.from_string('10')
  with pytest.raises(AttributeError):
    structure.bits = (True, True)
  table = {structure: 'a', Structure.from_string('01'): 'b'}
  assert table[Structure((True, False))] == 'a'
  assert structure != Structure.from_string('100')


def test_all_structures_lazy_in_integer_order():
  assert [str(s) for s in all_structures(2)] == ['00', '10', '01', '11']
  assert [int(s) for s in all_structures(5)] == list(range(32))
  first = list(itertools.islice(all_structures(200), 3))  # 2^200 could not be listed
  assert [int(s) for s in first] == [0, 1, 2]


@pytest.mark.parametrize('num_gates', [1, 3, 9])
def test_all_bits_are_all_structures(num_gates):
  bits = all_bits(num_gates)
  assert bits.dtype == bool
  np.testing.assert_array_equal(bits, [s.bits for s in all_structures(num_gates)])


def test_too_many_gates_to_enumerate():
  with pytest.raises(UserError, match=rf'^{ENUMERABLE_GATES + 1} gates .* at most 24 gates'):
    all_bits(ENUMERABLE_GATES + 1)


def test_neighbours():
  neighbours = list(Structure.from_string('101').neighbours())
  assert [str(s) for s in neighbours] == ['001', '111', '100']


def test_from_int_round_trip_of_wide_structures():
  value = (1 << 79) + 5  # beyond every machine integer
  structure = Structure.from_int(value, num_gates=80)
  assert int(structure) == value
  assert Structure.from_string(str(structure)) == structure


@pytest.mark.parametrize(
  'form', ['101', 5, np.int32(5), (1, 0, 1), [True, False, True], np.array([1, 0, 1])]
)
def test_parse_takes_every_form(form):
  assert parse(form, 3) == Structure.from_string('101')
  np.testing.assert_array_equal(bits_of([form, '000'], 3), [[1, 0, 1], [0, 0, 0]])


def test_bits_of():
  bits = np.array([[1, 0], [0, 1], [1, 1]])
  np.testing.assert_array_equal(bits_of(bits, 2), bits)
  assert bits_of(bits, 2).dtype == bool
  assert bits_of([], 4).shape == (0, 4)
  np.testing.assert_array_equal(bits_of(all_structures(3), 3), all_bits(3))


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: Structure.from_string('10x1'), "structure '10x1': expected a string of 0 and 1"),
    (lambda: Structure.from_string(''), "structure '': expected a string of 0 and 1"),
    (lambda: Structure(()), r'structure \(\): expected a bit for each gate, at least one'),
    (lambda: Structure((0, 2)), r'structure bits \(0, 2\): expected only 0 and 1'),
    (lambda: Structure.from_int(8, num_gates=3), r'structure 8: expected .* \[0, 2\^3\)'),
    (lambda: Structure.from_int(-1, num_gates=3), 'structure -1: expected an integer'),
    (lambda: parse('10', 3), 'structure 10 has 2 gates: expected 3, one per gate'),
    (lambda: parse(9, 3), 'structure 9: expected an integer'),
    (lambda: parse(1.5, 3), 'structure 1.5: expected a Structure, a string'),
    (lambda: parse(True, 1), 'structure True: expected a Structure, a string'),
    (lambda: parse(None, 3), 'structure None: expected a Structure'),
    (lambda: bits_of(np.zeros((2, 4)), 3), 'structures of 4 gates: expected 3, one per gate'),
    (lambda: bits_of(np.array([[0.5, 1]]), 2), 'structure bits with 0.5: expected only 0 and 1'),
    (lambda: bits_of(['101', '11'], 3), 'structure 11 has 2 gates: expected 3'),
  ],
)
def test_bad_structures(make, message):
  with pytest.raises(UserError, match=message) as raised:
    make()
  assert '\n' not in str(raised.value)


SPACE = Space(
  (Gate('low/residual', 10.0, 3), Gate('mid/residual', 200.0, 5), Gate('top/residual', 4000.0, 7)),
  fixed_flops=1.0,
  fixed_params=2,
)


def test_space_names():
  assert len(SPACE) == SPACE.num_gates == 3
  assert SPACE.names == ('low/residual', 'mid/residual', 'top/residual')
  assert [gate.name for gate in SPACE] == list(SPACE.names)
  assert SPACE.index('mid/residual') == 1
  assert str(SPACE.structure(['top/residual', 'low/residual'])) == '101'
  assert str(SPACE.structure()) == '000'
  assert str(SPACE.all_on()) == '111'
  assert SPACE.parse('110') == Structure.from_string('110')


def test_space_costs():
  assert SPACE.flops('101') == 4011
  assert SPACE.params('011') == 14
  flops, params = SPACE.costs(all_structures(3))
  np.testing.assert_array_equal(flops, [1, 11, 201, 211, 4001, 4011, 4201, 4211])
  np.testing.assert_array_equal(params, [2, 5, 7, 10, 9, 12, 14, 17])
  assert params.dtype == np.int64


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: SPACE.index('mid/resdual'), "'mid/resdual': .* did you mean 'mid/residual'"),
    (lambda: SPACE.structure(['nothing']), "unknown gate 'nothing': expected one of low/residual"),
    (lambda: SPACE.parse('1101'), 'structure 1101 has 4 gates: expected 3'),
    (lambda: Space((Gate('a'), Gate('b'), Gate('a'))), "gate name 'a' occurs twice"),
    (lambda: Space((Gate('a'),)).flops('1'), r'no costs: expected .* additive_jax.measure'),
    (lambda: Space((Gate('a', 1.0, 1),)).params('1'), 'this space carries no costs'),
  ],
)
def test_bad_use_of_a_space(make, message):
  with pytest.raises(UserError, match=message) as raised:
    make()
  assert '\n' not in str(raised.value)
