"""What XLA says of a compiled program: the bytes that each device holds, and those that its
collectives bring to it.

Bytes moved are counted as rings move them (Patarasuk & Yuan 2009, J. Parallel Distrib. Comput. 69):
of N bytes of the whole array, among n devices each receives

  all-gather, reduce-scatter, all-to-all    N · (n − 1) / n
  all-reduce                                2 · N · (n − 1) / n
  collective-permute                        N

A collective in a loop counts as often as the loop runs, where the program says how often, else
once; of branches the one that moves most counts.
"""

from __future__ import annotations

import collections
import functools
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

COLLECTIVES = (*('all-gather', 'reduce-scatter', 'all-reduce', 'all-to-all', 'collective-permute'),)
OPERATION = re.compile(rf' = (.*?) ({"|".join(COLLECTIVES)})(?:-start)?\(')
CALLED = re.compile(r'(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)')
BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
Moved = collections.Counter[str]


class Held(NamedTuple):
  """Bytes on one device while a program runs, as XLA lays them out.

  Attributes:
    arguments: what it is given, such as a state.
    temporaries: what it needs in between.
    outputs: what it gives, but for what takes the place of an argument.
    host: of arguments and results, those that lie in the host's memory.
  """

  arguments: int
  temporaries: int
  outputs: int
  host: int

  @property
  def total(self) -> int:
    """All of them in the device's own memory."""
    return self.arguments + self.temporaries + self.outputs


def held(program: Any) -> Held:
  """Returns the bytes that each device holds while a compiled program runs.

  >>> program = jax.jit(lambda x: x @ x.T).lower(jnp.ones((8, 4))).compile()
  >>> held(program).arguments, held(program).outputs
  (128, 256)

  Args:
    program: of `jax.jit(...).lower(...).compile()`.
  """
  found = program.memory_analysis()
  return Held(
    found.argument_size_in_bytes,
    found.temp_size_in_bytes,
    found.output_size_in_bytes - found.alias_size_in_bytes,
    found.host_argument_size_in_bytes + found.host_temp_size_in_bytes,
  )


def moved(text: str) -> dict[str, float]:
  """Returns the bytes that each device receives by each kind of collective, see above.

  Four devices add up 8 floats each:

  >>> mesh = jax.sharding.Mesh(jax.devices()[:4], 'data')
  >>> add_up = jax.shard_map(
  ...   lambda x: jax.lax.psum(x, 'data'), mesh=mesh, in_specs=jax.P(), out_specs=jax.P(),
  ...   check_vma=False,
  ... )
  >>> moved(jax.jit(add_up).lower(jnp.ones(8)).compile().as_text())
  {'all-reduce': 48.0}

  Args:
    text: of a compiled program.
  """
  bodies = dict(_computations(text))

  @functools.cache
  def of(name: str) -> Moved:
    total: Moved = collections.Counter()
    for line in bodies.get(name, ()):
      total += _of_line(line)
      times = int(found[1]) if (found := TRIPS.search(line)) else 1
      for called in CALLED.findall(line):
        total += _times(of(called), times)
      if branches := BRANCHES.search(line):
        names = [one.strip().lstrip('%') for one in branches[1].split(',')]
        moves: list[Moved] = [of(one) for one in names]
        total += moves[int(np.argmax([sum(one.values()) for one in moves]))]
    return total

  return dict(of(''))


def _times(bytes_: Moved, count: int) -> Moved:
  return collections.Counter({kind: count * value for kind, value in bytes_.items()})


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
  """Yields the name and the lines of each computation of a program; the first to run is ''."""
  name, lines = None, []
  for line in text.splitlines():
    if line.endswith('{') and not line.startswith((' ', 'HloModule')):
      entry, name = line.startswith('ENTRY'), line.removeprefix('ENTRY ').split()[0].lstrip('%')
      name, lines = '' if entry else name, []
    elif line.startswith('}') and name is not None:
      yield name, lines
      name = None
    elif name is not None and '=' in line:
      lines.append(line)


def _of_line(line: str) -> Moved:
  """Returns what the operation on a line moves, if it is a collective."""
  found = OPERATION.search(line)
  if found is None:
    return collections.Counter()
  kind, size, among = found[2], _bytes(found[1]), _among(line)
  if f'{kind}-start(' in line and kind in ('all-gather', 'collective-permute'):
    size -= _bytes(found[1]) // (among + 1) if kind == 'all-gather' else size // 2
  share = (among - 1) / among
  whole = size * among if kind == 'reduce-scatter' else size
  factor = {'all-reduce': 2 * share, 'collective-permute': 1.0}.get(kind, share)
  return collections.Counter({kind: whole * factor} if whole * factor else {})


def _among(line: str) -> int:
  """Returns among how many devices a collective works."""
  if found := re.search(r'replica_groups=\{\{([\d,]*)\}', line):
    return found[1].count(',') + 1
  if found := re.search(r'replica_groups=\[(\d+),(\d+)\]', line):
    return int(found[2])
  if found := re.search(r'replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}', line):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
  return 2  # a permutation has none


def _bytes(shapes: str) -> int:
  """Returns the bytes of the arrays of a type as the text of a program writes it."""
  sizes = [
    max(1, int(bits) // 8) * math.prod(int(n) for n in shape.split(',') if n)
    for bits, shape in re.findall(r'\b[a-z]+(\d+)[\w]*\[([\d,]*)\]', shapes)
  ]
  return sum(sizes) + sum(  # pred has no number of bits
    math.prod(int(n) for n in shape.split(',') if n)
    for shape in re.findall(r'\bpred\[([\d,]*)\]', shapes)
  )
