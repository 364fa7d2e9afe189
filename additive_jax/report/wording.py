"""How numbers and names read in pages and pictures."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np

_SUPERSCRIPT = str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹')


def format_value(value: Any) -> str:
  """Returns a value as a person reads it: four significant digits, whole numbers in full, or `–`.

  >>> format_value(0.123456), format_value(-4096), format_value(2e-7), format_value(float('nan'))
  ('0.1235', '−4,096', '2.000×10⁻⁷', '–')
  """
  if value is None or (isinstance(value, numbers.Real) and math.isnan(value)):
    return '–'
  if isinstance(value, bool | np.bool_):
    return 'yes' if value else 'no'
  if isinstance(value, numbers.Integral):
    return f'{int(value):,}'.replace('-', '−')
  if not isinstance(value, numbers.Real):
    return str(value)
  if math.isinf(value):
    return '∞' if float(value) > 0 else '−∞'
  return _powers(f'{float(value):z#,.4g}').replace('-', '−')


def _powers(text: str) -> str:
  """Returns a number of Python with its exponent as a power of ten, and without a last point."""
  digits, _, exponent = text.partition('e')
  return f'{digits}×{power_of_ten(int(exponent))}' if exponent else digits.rstrip('.')


def format_margin(half_width: Any) -> str:
  """Returns the half width of an interval to two significant digits; '' where there is none.

  >>> format_margin(0.18763), format_margin(float('nan'))
  ('0.19', '')
  """
  if half_width is None or math.isnan(half_width):
    return ''
  if half_width == 0 or math.isinf(half_width):
    return format_value(half_width) if half_width else '0'
  rounded = float(f'{half_width:.2g}')
  return _powers(f'{rounded:,.0f}' if 100 <= rounded < 1e4 else f'{rounded:#.2g}')


def with_margin(value: float, half_width: float, spec: str = '+z.4f', unit: str = '') -> str:
  """Returns a number with the half width of its interval, which is left out where it is NaN.

  Args:
    spec: format of both numbers; only the first one shows a plus.
    unit: what follows them, with its space.

  >>> with_margin(-0.0123, 0.004).split(), with_margin(12.3, float('nan'), 'z.1f', ' %')
  (['−0.0123', '±', '0.0040'], '12.3 %')
  """
  margin = '' if math.isnan(half_width) else f' ±\N{NO-BREAK SPACE}{half_width:{spec.strip("+")}}'
  return f'{value:{spec}}{margin}{unit}'.replace('-', '−')


def counted(number: int, noun: str) -> str:
  """Returns a number with its noun.

  >>> counted(1, 'seed'), counted(4096, 'seed')
  ('1 seed', '4,096 seeds')
  """
  return f'{number:,} {noun}' if number == 1 else f'{number:,} {noun}s'


def plain(name: str) -> str:
  """Returns a name of the code as words.

  >>> plain('equal_flops')
  'equal flops'
  """
  return str(name).replace('_', ' ')


WORDS = {'flops': 'FLOPs', 'params': 'parameters'}


def heading(name: str) -> str:
  """Returns what a column of a table is called.

  >>> heading('training_flops'), heading('alone_r2')
  ('training FLOPs', 'alone R²')
  """
  return ' '.join(WORDS.get(word, SCORES.get(word, word)) for word in str(name).split('_'))


SCORES = {
  'r2': 'R²',
  'mae': 'mean absolute error',
  'rmse': 'root mean squared error',
  'f1': 'F1',
  'f1_macro': 'macro F1',
  'f1_micro': 'micro F1',
}
SHARES = ('accuracy', 'exact_match', 'f1', 'f1_macro', 'f1_micro')


def score_name(score: str) -> str:
  """Returns what a loss or metric is called.

  >>> score_name('r2'), score_name('exact_match')
  ('R²', 'exact match')
  """
  return SCORES.get(score, plain(score))


def difference(score: str, value: float, half_width: float) -> str:
  """Returns a difference in a score with its margin; of shares in points, hundredths.

  >>> difference('accuracy', -0.0123, float('nan')), difference('mae', 0.5, float('nan'))
  ('−1.23 points', '+0.5000')
  """
  if score in SHARES or score.startswith('top'):
    return with_margin(100 * value, 100 * half_width, '+z.2f', ' points')
  return with_margin(value, half_width)


def short_names(names: Iterable[str]) -> list[str]:
  """Returns gate names without the ending that all share.

  The first part of every name stays, and names stay distinct, because only what is common to all
  goes.

  >>> short_names(['block_00/mlp/residual', 'block_01/mlp/residual'])
  ['block_00', 'block_01']
  """
  parts = [str(name).split('/') for name in names]
  while all(len(part) > 1 for part in parts) and len({part[-1] for part in parts}) == 1:
    parts = [part[:-1] for part in parts]
  return ['/'.join(part) for part in parts]


def power_of_ten(exponent: int) -> str:
  """Returns a power of ten as text.

  >>> power_of_ten(-6)
  '10⁻⁶'
  """
  return f'10{str(exponent).translate(_SUPERSCRIPT)}'
