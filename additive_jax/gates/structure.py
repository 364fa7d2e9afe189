"""A structure, all of them, and the named space they live in. No JAX here.

Many structures at once are **bits**: a NumPy array bool [S, n], one structure a row.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from additive_jax.errors import UserError

ENUMERABLE_GATES = 24  # 2^24 structures take a minute to list and 400 MB as a table of bits


@dataclasses.dataclass(frozen=True, slots=True)
class Structure:
  """The value of all gates of a network: frozen, hashable, indexed by gate number.

  Text form: gate 0 leftmost (`'1011'`). Integer form: gate i is bit i, so `'100'` is the integer 1.

  >>> structure = Structure.from_string('1011')
  >>> structure[0], int(structure), structure.num_on
  (True, 13, 3)

  Attributes:
    bits: one Python bool per gate, True where the `+` is performed.
  """

  bits: tuple[bool, ...]

  def __post_init__(self):
    if not self.bits:
      raise UserError('structure (): expected a bit for each gate, at least one')
    if not all(bit in (0, 1) for bit in self.bits):
      raise UserError(f'structure bits {self.bits!r}: expected only 0 and 1')
    object.__setattr__(self, 'bits', tuple(bool(bit) for bit in self.bits))

  @classmethod
  def from_string(cls, text: str) -> Structure:
    """Returns the structure of a text such as `'1011'`; raises `UserError` on another character."""
    if not isinstance(text, str) or not text or set(text) - {'0', '1'}:
      raise UserError(f'structure {text!r}: expected a string of 0 and 1, gate 0 leftmost')
    return cls(tuple(char == '1' for char in text))

  @classmethod
  def from_int(cls, value: int, *, num_gates: int) -> Structure:
    """Returns the structure of an integer; raises `UserError` outside [0, 2^num_gates)."""
    value = int(value)
    if not 0 <= value < 1 << num_gates:
      raise UserError(f'structure {value}: expected an integer in [0, 2^{num_gates})')
    return cls(tuple(bool(value >> i & 1) for i in range(num_gates)))

  @classmethod
  def all_on(cls, num_gates: int) -> Structure:
    """Returns the structure of ones: the plain dense network."""
    return cls((True,) * num_gates)

  @property
  def num_gates(self) -> int:
    return len(self.bits)

  @property
  def num_on(self) -> int:
    return sum(self.bits)

  def neighbours(self) -> Iterator[Structure]:
    """Yields the structures at Hamming distance one, the one with gate 0 flipped first."""
    for i, bit in enumerate(self.bits):
      yield Structure((*self.bits[:i], not bit, *self.bits[i + 1 :]))

  def __len__(self) -> int:
    return len(self.bits)

  def __iter__(self) -> Iterator[bool]:
    return iter(self.bits)

  def __getitem__(self, index: Any) -> Any:
    return self.bits[index]

  def __int__(self) -> int:
    return sum(1 << i for i, bit in enumerate(self.bits) if bit)

  def __str__(self) -> str:
    return ''.join('01'[bit] for bit in self.bits)

  def __repr__(self) -> str:
    return f"Structure('{self}')"

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    return np.asarray(self.bits, dtype=dtype or bool)


StructureLike = Structure | str | int | Sequence[bool]  # see `parse`


def all_structures(num_gates: int) -> Iterator[Structure]:
  """Yields all 2^num_gates structures in integer order.

  >>> [str(structure) for structure in all_structures(2)]
  ['00', '10', '01', '11']
  """
  for value in range(1 << num_gates):
    yield Structure.from_int(value, num_gates=num_gates)


def all_bits(num_gates: int) -> Bool[np.ndarray, 'S n']:
  """Returns all 2^num_gates structures as bits, in integer order.

  >>> all_bits(2).astype(int).tolist()
  [[0, 0], [1, 0], [0, 1], [1, 1]]

  Raises:
    UserError: for more gates than can be listed.
  """
  if num_gates > ENUMERABLE_GATES:
    raise UserError(
      f'{num_gates} gates have 2^{num_gates} structures, too many to enumerate: expected at most '
      f'{ENUMERABLE_GATES} gates, or a list of structures, or a search (config.search.method)'
    )
  # Unpacked from bytes: 2^24 rows of shifted integers would take eight times the room of the table.
  values = np.arange(1 << num_gates, dtype='<u4').view(np.uint8).reshape(-1, 4)
  return np.unpackbits(values, axis=1, count=num_gates, bitorder='little').astype(bool)


def bits_of(structures: Iterable[StructureLike], num_gates: int) -> Bool[np.ndarray, 'S n']:
  """Returns structures in any form (see `parse`), or an array of 0 and 1, as bits.

  >>> bits_of(['10', 3], num_gates=2).astype(int).tolist()
  [[1, 0], [1, 1]]
  """
  if isinstance(structures, np.ndarray) and structures.ndim == 2:
    if structures.shape[1] != num_gates:
      raise UserError(
        f'structures of {structures.shape[1]} gates: expected {num_gates}, one per gate'
      )
    if not np.isin(structures, (0, 1)).all():
      value = structures[~np.isin(structures, (0, 1))][0]
      raise UserError(f'structure bits with {value}: expected only 0 and 1')
    return structures.astype(bool)
  if isinstance(structures, str | Structure) or not np.iterable(structures):
    raise UserError(f'structures {structures!r}: expected several, such as [{structures!r}]')
  rows = [parse(s, num_gates).bits for s in structures]
  return np.array(rows, dtype=bool).reshape(len(rows), num_gates)


def parse(structure: StructureLike, num_gates: int) -> Structure:
  """Returns the structure that any of its forms stands for, checked for its number of gates.

  >>> parse('101', 3) == parse(5, 3) == parse((True, False, True), 3)
  True

  Raises:
    UserError: for another form, or another number of gates.
  """
  if isinstance(structure, str):
    structure = Structure.from_string(structure)
  elif isinstance(structure, int | np.integer) and not isinstance(structure, bool | np.bool_):
    return Structure.from_int(structure, num_gates=num_gates)
  elif not isinstance(structure, Structure):
    try:
      structure = Structure(tuple(structure))  # type: ignore[arg-type]  # the error is for others
    except TypeError:
      raise UserError(
        f'structure {structure!r}: expected a Structure, a string of 0 and 1, or an integer'
      ) from None
  if structure.num_gates != num_gates:
    raise UserError(
      f'structure {structure} has {structure.num_gates} gates: expected {num_gates}, one per gate'
    )
  return structure


@dataclasses.dataclass(frozen=True)
class Gate:
  """One named `+`, and what it costs to perform.

  >>> Gate('block_03/residual', flops=2e6, params=4160).name
  'block_03/residual'

  Attributes:
    name: such as `block_03/residual`, unique in its space.
    flops: floating-point operations of one example's forward pass that the gate switches; None if
      not measured yet.
    params: parameters that it alone reads, not those of `Space.shared`; None if not measured yet.
    within: name of the residual gate that skips this one with its whole site, or None. Where that
      is off, this gate has no effect.

  Joining chunks of a sub-activation saves an activation: its FLOPs are below zero.
  """

  name: str
  flops: float | None = None
  params: int | None = None
  within: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Shared:
  """How many parameters several gates read, by name, such as those of a layer that two sites have
  in common: any of the gates makes a structure read them all."""

  params: int
  gates: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Space:
  """The ordered, named gates of a model.

  >>> space = Space((Gate('a/residual', 10.0, 2), Gate('b/residual', 20.0, 4)), 5.0, 1)
  >>> space.flops('01'), space.params('01'), str(space.structure(['a/residual']))
  (25.0, 5, '10')

  Attributes:
    gates: in the order of a structure's bits.
    fixed_flops: operations of one example's forward pass with every gate off (embed and readout);
      None if unknown.
    fixed_params: parameters that every structure reads; None if unknown.
    shared: parameters that several gates read.
  """

  gates: tuple[Gate, ...]
  fixed_flops: float | None = None
  fixed_params: int | None = None
  shared: tuple[Shared, ...] = ()

  def __post_init__(self):
    names = self.names
    if len(set(names)) != len(names):
      twice = next(name for name in names if names.count(name) > 1)
      raise UserError(f'gate name {twice!r} occurs twice: expected unique names in {names}')

  def __len__(self) -> int:
    return len(self.gates)

  def __iter__(self) -> Iterator[Gate]:
    return iter(self.gates)

  @property
  def num_gates(self) -> int:
    return len(self.gates)

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(gate.name for gate in self.gates)

  def index(self, name: str) -> int:
    """Returns the number of the gate called `name`; raises `UserError` for an unknown one."""
    if name not in self.names:
      near = difflib.get_close_matches(name, self.names, n=1)
      hint = f'; did you mean {near[0]!r}?' if near else ''
      raise UserError(f'unknown gate {name!r}: expected one of {", ".join(self.names)}{hint}')
    return self.names.index(name)

  def parse(self, structure: StructureLike) -> Structure:
    """Returns a structure in any of its forms as a `Structure`, checked against this space."""
    return parse(structure, self.num_gates)

  def structure(self, on: Sequence[str] = ()) -> Structure:
    """Returns the structure with just the named gates on."""
    indices = {self.index(name) for name in on}
    return Structure(tuple(i in indices for i in range(self.num_gates)))

  def all_on(self) -> Structure:
    """Returns the structure of ones."""
    return Structure.all_on(self.num_gates)

  def flops(self, structure: StructureLike) -> float:
    """Returns the FLOPs of one example's forward pass through `structure`."""
    return float(self.costs([structure])[0][0])

  def params(self, structure: StructureLike) -> int:
    """Returns the parameters that `structure` reads."""
    return int(self.costs([structure])[1][0])

  def costs(
    self, structures: Iterable[StructureLike]
  ) -> tuple[Float[np.ndarray, 'S'], Int[np.ndarray, 'S']]:
    """Returns the FLOPs of one example's forward pass and the parameters of many structures.

    Raises:
      UserError: when this space carries no costs; `additive_jax.measure(model, x)` gives one that
        does.
    """
    if self.fixed_flops is None or any(gate.flops is None for gate in self.gates):
      raise UserError(
        'this space carries no costs: expected one from additive_jax.measure(model, x)'
      )
    bits = bits_of(structures, self.num_gates)
    for i, gate in enumerate(self.gates):
      if gate.within is not None:
        bits[:, i] &= bits[:, self.index(gate.within)]
    flops = self.fixed_flops + bits @ np.array([gate.flops for gate in self.gates], float)
    params = self.fixed_params + bits @ np.array([gate.params for gate in self.gates], np.int64)
    for shared in self.shared:
      params += shared.params * bits[:, [self.index(name) for name in shared.gates]].any(1)
    return flops, params

  def params_by_gate(self) -> Float[np.ndarray, 'n']:
    """Returns the parameters of each gate, of those that several share an equal part: with
    `fixed_params` they sum to those of all-on.

    >>> Space((Gate('a', 1, 2), Gate('b', 1, 4)), 0, 1, (Shared(8, ('a', 'b')),)).params_by_gate()
    array([6., 8.])
    """
    parts = np.array([gate.params or 0 for gate in self.gates], float)
    for shared in self.shared:
      parts[[self.index(name) for name in shared.gates]] += shared.params / len(shared.gates)
    return parts

  def expected_flops(self, keep_rates: ArrayLike) -> Float[np.ndarray, '...']:
    """Returns the expected FLOPs of one example's forward pass when gates are on independently.

    Args:
      keep_rates: probabilities [..., n]; a gate within a residual one is paid for when both are on.

    >>> Space((Gate('a', 10.0, 2), Gate('b', 20.0, 4)), 5.0, 1).expected_flops([0.5, 0.1])
    array(12.)
    """
    on = np.asarray(keep_rates, float)
    total = np.full(on.shape[:-1], float(self.fixed_flops or 0))
    for i, gate in enumerate(self.gates):
      both = on[..., i] if gate.within is None else on[..., i] * on[..., self.index(gate.within)]
      total = total + (gate.flops or 0) * both
    return np.asarray(total)
