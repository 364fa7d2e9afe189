"""How long structures take on this device: measured for every gate, in the whole network.

A gate's time depends on its place: what the cache holds when it begins, what runs beside it. So no
site is timed alone. One program runs any structure (`ways.conditional`); it is timed for a set of
structures in which every gate is on in one half and any two gates are on together in a quarter, the
rows of a Hadamard matrix (a weighing design, Hotelling 1944):

    gate     0 1 2          seconds
             1 1 1          t
             0 1 0          t          each gate's time is a difference of means over all
             1 0 0          t          structures, not of two: n + 1 timings tell n gates as
             0 0 1          t          well as n/2 timings of each would

Times of that program are then scaled so that all-on and all-off take what their own programs take,
which have no conditionals.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from additive_jax.batches import Shapes, num_examples, shapes_of
from additive_jax.errors import UserError, user_errors
from additive_jax.files import seal
from additive_jax.files.journal import replace_file
from additive_jax.gates.structure import Structure, StructureLike, bits_of
from additive_jax.models.additive import canonical, gate_names
from additive_jax.models.contract import check_pool
from additive_jax.models.identity import describe
from additive_jax.run.ways import conditional, static

SHORT = 1e-3  # seconds; what takes less is timed several times in a row
LEAST_ROUNDS, MOST_ROUNDS = 3, 50


@dataclasses.dataclass(frozen=True)
class Latency:
  """A table of what each gate takes on a device.

  >>> table = Latency(('a', 'b'), (0.25, 0.5), (0.0, 0.0), fixed=1.0, batch=1, device='cpu')
  >>> table.predict(['10', '11']).tolist()
  [1.25, 1.75]

  Attributes:
    names: of the gates.
    seconds: what each adds to a forward pass when it is on.
    errors: one standard error of each.
    fixed: seconds of the network with all gates off.
    batch: examples of a pass.
    device: what it was measured on.
    of: the network and the shape of its inputs.
  """

  names: tuple[str, ...]
  seconds: tuple[float, ...]
  errors: tuple[float, ...]
  fixed: float
  batch: int
  device: str
  of: str = ''

  def predict(self, structures: Iterable[StructureLike]) -> Float[np.ndarray, ' S']:
    """Returns the seconds of structures in canonical form."""
    return self.fixed + bits_of(structures, len(self.names)) @ np.array(self.seconds)

  def write(self, path: Path) -> None:
    """Writes the table as a file, whole or not at all."""
    content = json.dumps(seal.sealed(json.loads(json.dumps(dataclasses.asdict(self)))), indent=1)
    with user_errors('write the latencies', path, 'a writable file'):
      replace_file(path, content.encode())

  @classmethod
  def read(cls, path: Path) -> Latency:
    """Returns the table of a file.

    Raises:
      UserError: for a file that `write` has not written.
    """
    with user_errors('read the latencies', path, 'a file that measure_latency wrote'):
      content = path.read_bytes()
    try:
      fields, _ = seal.parsed(content)
      values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
      }
      return cls(**values)
    except (seal.DamagedError, TypeError) as error:
      raise UserError(f'{path}: {error}; expected a file that measure_latency wrote') from error


@dataclasses.dataclass(frozen=True)
class Verified:
  """Predicted and measured times of structures.

  >>> found = Verified(('10', '11'), (1.0, 2.0), (1.0, 2.5))
  >>> round(found.error, 3), round(found.slope, 3)
  (0.2, 1.5)

  Attributes:
    structures: their texts.
    predicted, measured: seconds; each measured by a program of its own, as an export runs.
  """

  structures: tuple[str, ...]
  predicted: tuple[float, ...]
  measured: tuple[float, ...]

  @property
  def error(self) -> float:
    """The largest relative error of a prediction."""
    predicted, measured = np.array(self.predicted), np.array(self.measured)
    return float(np.abs(predicted / measured - 1).max())

  @property
  def slope(self) -> float:
    """The seconds that are measured for each predicted one, by least squares with a constant."""
    return float(np.polyfit(self.predicted, self.measured, 1)[0])

  @property
  def rank_correlation(self) -> float:
    """Spearman's, between predicted and measured."""
    first, second = (np.argsort(np.argsort(v)) for v in (self.predicted, self.measured))
    return float(np.corrcoef(first, second)[0, 1])


def measure_latency(
  model: nn.Module,
  variables: PyTree,
  x: Any,
  *,
  seconds: float = 20.0,
  device: jax.Device | None = None,
) -> Latency:
  """Returns what each gate of a network takes on this device, for one forward pass of `x`.

  Times three programs, each compiled once. The time of structure s is modelled as `fixed + Σ_i
  seconds[i]·s_i`.

  >>> model, x = aj.models.MLP(num_blocks=3, width=4, hidden=8, num_classes=3), np.ones((5, 6), 'f')
  >>> table = measure_latency(model, model.init(jax.random.key(0), x), x, seconds=0.1)
  >>> len(table.seconds), table.batch
  (3, 5)

  Args:
    variables: `{'params': pool}`.
    x: inputs [B, ...] of the batch size that counts: 1 for one user, more for many.
    seconds: to time for, without compiling; at least three rounds are timed.
    device: where; None is the first one.

  Source: Hotelling, Some improvements in weighing, Annals of Mathematical Statistics 15, 1944.
  """
  if not isinstance(seconds, int | float) or not 0 < seconds < float('inf'):
    raise UserError(f'seconds {seconds!r}: expected a positive number')
  check_pool(model, variables, x)
  device = device or jax.local_devices()[0]
  variables, x = jax.device_put((variables, x), device)
  n = len(gate_names(model))
  bits = np.unique(canonical(model, _weighing(n)), axis=0)
  any_program = jax.jit(conditional, static_argnums=0).lower(model, variables, x, bits[0]).compile()
  placed = [jax.device_put(row, device) for row in bits]
  ends = [Structure.all_on(n), Structure((False,) * n)]
  calls: list[Callable[[], Array]] = [
    *(functools.partial(any_program, variables, x, row) for row in placed),
    *(_own_program(model, variables, x, structure) for structure in ends),
  ]
  times = _timed(calls, seconds)
  found, errors = _by_gate(bits, times[:-2])
  full, least = times[-2:]
  total = found.sum()
  # Where nothing but noise was timed, gates are taken to be alike.
  scale = (full - least) / total if total > 0 else 0.0
  gates = found * scale if total > 0 else np.full(n, (full - least) / n)
  return Latency(
    names=gate_names(model),
    seconds=tuple(gates.tolist()),
    errors=tuple((errors * abs(scale)).tolist()),
    fixed=float(least),
    batch=num_examples(x),
    device=_name(device),
    of=_of(model, shapes_of(x)),
  )


def latency_table(path: Path, model: nn.Module, variables: PyTree, x: Any) -> Latency:
  """Returns the table of a file; where there is none measures it, and writes it there.

  Raises:
    UserError: for a file that is of another network, shape of inputs or kind of device.
  """
  device = jax.local_devices()[0]
  if path.exists():
    table = Latency.read(path)
    expected = _of(model, shapes_of(x)), _name(device)
    if (table.of, table.device) != expected:
      raise UserError(
        f'{path} is of {table.of} on {table.device}: expected {expected[0]} on {expected[1]}, or '
        'another path'
      )
    return table
  table = measure_latency(model, variables, x, device=device)
  table.write(path)
  return table


def verify_latency(
  table: Latency,
  model: nn.Module,
  variables: PyTree,
  x: Any,
  structures: Sequence[StructureLike],
  *,
  seconds: float = 5.0,
) -> Verified:
  """Returns what structures take, each by a program of its own, beside what the table predicts.

  Args:
    table: of the same network and device.
    x: inputs of its batch size.
    structures: each compiles.
    seconds: to time for, without compiling.
  """
  bits = canonical(model, bits_of(structures, len(table.names)))
  texts = [Structure(tuple(row.tolist())) for row in bits]
  measured = time_structures(model, variables, x, texts, seconds=seconds)
  return Verified(
    tuple(map(str, texts)), tuple(table.predict(bits).tolist()), tuple(measured.tolist())
  )


def time_structures(
  model: nn.Module,
  variables: PyTree,
  x: Any,
  structures: Sequence[StructureLike],
  *,
  seconds: float = 5.0,
) -> Float[np.ndarray, ' S']:
  """Returns the median seconds of a forward pass of each structure, as a program of its own.

  Args:
    variables, x: of the network, on the host or a device.
    structures: each compiles.
    seconds: to time for all together, without compiling.
  """
  variables, x = jax.device_put((variables, x), jax.local_devices()[0])
  calls = [_own_program(model, variables, x, structure) for structure in structures]
  return _timed(calls, seconds)


def _own_program(model, variables, x, structure) -> Callable[[], Array]:
  run = lambda variables, x: static(model, variables, x, structure)
  return functools.partial(jax.jit(run).lower(variables, x).compile(), variables, x)


def _weighing(n: int) -> Bool[np.ndarray, 'S n']:
  """Returns structures in which every gate is on in one half, and any two in a quarter.

  >>> _weighing(3).astype(int).tolist()
  [[1, 1, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]]
  """
  size = 1 << n.bit_length()  # a power of two above n
  place = np.arange(size, dtype=np.uint64)
  ones = np.bitwise_count(place[:, None] & place[None, 1 : n + 1])
  return ones % 2 == 0


def _timed(calls: Sequence[Callable[[], Array]], seconds: float) -> Float[np.ndarray, ' calls']:
  """Returns the median seconds of some calls, timed in turn so that all see the same machine."""
  jax.block_until_ready([call() for call in calls])  # what a first call does besides
  began = time.perf_counter()
  jax.block_until_ready(calls[0]())
  repeats = max(1, round(SHORT / max(time.perf_counter() - began, 1e-6)))
  rounds: list[list[float]] = []
  began = time.perf_counter()
  order = np.random.default_rng(0)
  while len(rounds) < MOST_ROUNDS:
    if len(rounds) >= LEAST_ROUNDS and time.perf_counter() - began > seconds:
      break
    row = [0.0] * len(calls)
    for place in order.permutation(len(calls)):
      start = time.perf_counter()
      for _ in range(repeats):
        jax.block_until_ready(calls[place]())
      row[place] = (time.perf_counter() - start) / repeats
    rounds.append(row)
  return np.median(rounds, axis=0)


def _by_gate(
  bits: Bool[np.ndarray, 'S n'], times: Float[np.ndarray, ' S']
) -> tuple[Float[np.ndarray, ' n'], Float[np.ndarray, ' n']]:
  """Returns the time of each gate by least squares, and its standard error."""
  columns = np.concatenate([np.ones((len(bits), 1)), bits], axis=1)
  inverse = np.linalg.pinv(columns.T @ columns)
  found = inverse @ columns.T @ times
  free = max(1, len(bits) - columns.shape[1])
  variance = np.square(times - columns @ found).sum() / free
  return found[1:], np.sqrt(variance * np.diag(inverse))[1:]


def _of(model: nn.Module, x: Shapes) -> str:
  shapes = ' '.join(f'{leaf.dtype}{list(leaf.shape)}' for leaf in jax.tree.leaves(x))
  return f'{describe(model)} on {shapes}'


def _name(device: jax.Device) -> str:
  return f'{device.platform} {device.device_kind}'
