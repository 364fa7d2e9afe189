"""Numbers of bytes and of operations, as people read them."""

from __future__ import annotations

BYTES = ('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB')
FLOPS = ('FLOP', 'kFLOP', 'MFLOP', 'GFLOP', 'TFLOP', 'PFLOP', 'EFLOP')


def bytes_text(count: float) -> str:
  """Returns a number of bytes in the unit that suits it.

  >>> bytes_text(740), bytes_text(18512), bytes_text(3 * 2**30)
  ('740 B', '18.08 KiB', '3 GiB')
  """
  value, unit = _scaled(count, 1024, BYTES)
  return f'{value:.4g} {unit}'


def flops_text(count: float) -> str:
  """Returns a number of operations in the unit that suits it.

  >>> flops_text(43.2e9), flops_text(950)
  ('43 GFLOP', '950 FLOP')
  """
  value, unit = _scaled(count, 1000, FLOPS)
  return f'{value:.0f} {unit}' if value >= 10 else f'{value:.2g} {unit}'


def _scaled(value: float, step: int, units: tuple[str, ...]) -> tuple[float, str]:
  for unit in units[:-1]:
    if value < step:
      return value, unit
    value /= step
  return value, units[-1]
