"""Structures that are one network, and the one form in which a network is named and counted.

The gates inside of a site have no effect while its residual gate is off (`Gate.within`), so several
structures are one network. Its canonical form has such gates off. With a residual gate r and two
joins a, b inside of it, 8 structures are 5 networks:

    r a b        r a b
    0 0 0  ─┐    1 0 0     itself
    0 1 0   ├─▶  1 1 0     itself
    0 0 1   │    1 0 1     itself
    0 1 1  ─┘    1 1 1     itself
    canonical: 000

Whatever trains, ranks, searches or counts structures takes each network once, in this form. No JAX
here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Int

from additive_jax.errors import UserError, checked_seed
from additive_jax.gates.structure import (
  ENUMERABLE_GATES,
  Space,
  Structure,
  StructureLike,
  all_bits,
  bits_of,
)


def canonical(space: Space, structures: Iterable[StructureLike]) -> Bool[np.ndarray, 'S n']:
  """Returns structures as bits, with the gates that have no effect off.

  >>> from additive_jax.gates.structure import Gate
  >>> space = Space((Gate('r'), Gate('a', within='r')))
  >>> canonical(space, ['01', '11']).astype(int).tolist()
  [[0, 0], [1, 1]]
  """
  bits = bits_of(structures, space.num_gates)
  hosts = {i: space.index(gate.within) for i, gate in enumerate(space) if gate.within is not None}
  if not hosts:
    return bits
  bits = bits.copy()
  for inner, host in hosts.items():
    bits[:, inner] &= bits[:, host]
  return bits


def distinct(space: Space, structures: Iterable[StructureLike]) -> Bool[np.ndarray, 'N n']:
  """Returns the networks of structures in canonical form, each once, in order of appearance.

  >>> distinct(Space(()), []).shape
  (0, 0)
  """
  bits = canonical(space, structures)
  return bits[first_places(bits)]


def first_places(bits: Bool[np.ndarray, 'S n']) -> Int[np.ndarray, 'N']:
  """Returns where each different row stands first, in order.

  >>> first_places(np.array([[True, False], [True, True], [True, False]])).tolist()
  [0, 1]
  """
  if not len(bits):
    return np.zeros(0, int)
  return np.sort(np.unique(bits, axis=0, return_index=True)[1])


def num_networks(space: Space) -> int:
  """Returns how many different networks the 2^n structures are.

  >>> from additive_jax.gates.structure import Gate
  >>> num_networks(Space((Gate('r'), Gate('a', within='r'), Gate('b', within='r'))))
  5
  """
  return math.prod(radix for _, _, radix in _groups(space))


def all_networks(space: Space) -> Bool[np.ndarray, 'N n']:
  """Returns all networks in canonical form, in integer order.

  Raises:
    UserError: for more than can be listed.
  """
  count = num_networks(space)
  if count == 1 << space.num_gates:
    return all_bits(space.num_gates)
  if count > 1 << ENUMERABLE_GATES:
    raise UserError(
      f'{space.num_gates} gates have {count:,} networks, too many to enumerate: expected at most '
      f'2^{ENUMERABLE_GATES}, or a list of structures, or a search (config.search.method)'
    )
  return networks_at(space, np.arange(count))


def networks_at(space: Space, indices: Int[np.ndarray, 'S']) -> Bool[np.ndarray, 'S n']:
  """Returns networks in canonical form by their place among all of them.

  >>> from additive_jax.gates.structure import Gate
  >>> space = Space((Gate('r'), Gate('a', within='r')))
  >>> networks_at(space, np.arange(3)).astype(int).tolist()
  [[0, 0], [1, 0], [1, 1]]
  """
  # A place is a number with a digit for each site: 0 is off, d > 0 is on with inner gates d − 1.
  places = np.array(indices, np.int64)
  bits = np.zeros((len(places), space.num_gates), bool)
  for host, inner, radix in _groups(space):
    places, digit = np.divmod(places, radix)
    bits[:, host] = digit > 0
    bits[:, inner] = np.maximum(digit - 1, 0)[:, None] >> np.arange(len(inner)) & 1
  return bits


def places_of(space: Space, structures: Iterable[StructureLike]) -> Int[np.ndarray, 'S']:
  """Returns the place of each structure's network among `all_networks`.

  >>> from additive_jax.gates.structure import Gate
  >>> places_of(Space((Gate('r'), Gate('a', within='r'))), all_bits(2)).tolist()
  [0, 1, 0, 2]
  """
  bits = bits_of(structures, space.num_gates)
  places, weight = np.zeros(len(bits), np.int64), 1
  for host, inner, radix in _groups(space):
    digit = bits[:, host] * (1 + bits[:, inner] @ (1 << np.arange(len(inner), dtype=np.int64)))
    places, weight = places + weight * digit, weight * radix
  return places


def sampled_networks(space: Space, limit: int, seed: int) -> Bool[np.ndarray, 'N n']:
  """Returns all networks in canonical form where they are no more than `limit`, else that many, of
  structures drawn at random; all-on comes last.

  >>> from additive_jax.gates.structure import Gate
  >>> sampled_networks(Space((Gate('a'), Gate('b'))), 4, seed=0).astype(int).tolist()
  [[0, 0], [1, 0], [0, 1], [1, 1]]
  """
  if num_networks(space) <= limit:
    return all_networks(space)
  random = np.random.Generator(np.random.PCG64(checked_seed(seed)))
  rows: dict[bytes, Bool[np.ndarray, ' n']] = {}  # a set that keeps its order
  while len(rows) < limit - 1:
    row = canonical(space, random.integers(2, size=(1, space.num_gates)))[0]
    if not row.all():
      rows.setdefault(row.tobytes(), row)
  return np.array([*rows.values(), Structure.all_on(space.num_gates).bits], bool)


def different(
  space: Space, structures: Iterable[StructureLike], source: str = 'structures'
) -> list[Structure]:
  """Returns listed structures in canonical form.

  Args:
    source: what the list is called in messages.

  Raises:
    UserError: when two of them are one network.

  >>> from additive_jax.gates.structure import Gate
  >>> different(Space((Gate('r'), Gate('a', within='r'))), ['01', '11'])
  [Structure('00'), Structure('11')]
  """
  known: dict[Structure, Structure] = {}
  for structure in map(space.parse, structures):
    network = Structure(tuple(canonical(space, [structure])[0]))
    if (other := known.get(network)) == structure:
      raise UserError(f'structure {structure} occurs twice in {source}: expected each once')
    if other is not None:
      raise UserError(
        f'structures {other} and {structure} of {source} are one network, {network}, since gates '
        'inside of a site that is off have no effect: expected different networks'
      )
    known[network] = structure
  return list(known)


def _groups(space):
  """Yields for each gate that is in no other: its number, those of the gates in it, and how many
  networks these are together."""
  inner: dict[str, list[int]] = {}
  for i, gate in enumerate(space):
    if gate.within is not None:
      inner.setdefault(gate.within, []).append(i)
  for i, gate in enumerate(space):
    if gate.within is None:
      inside = inner.get(gate.name, [])
      yield i, inside, 1 + (1 << len(inside))
