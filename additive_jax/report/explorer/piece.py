"""An explorer as a part of a page: words as JSON, which no text can break out of, and numbers as
little-endian bytes in base64, which a browser reads into typed arrays.

      <script type="application/json">            gates, sites, labels, coefficients
      <script type="application/octet-stream">    structures, 8 gates a byte, gate 0 the lowest bit
      <script type="application/octet-stream">    float32, one for each score and interval
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from markupsafe import Markup

from additive_jax.report.explorer.data import Explorer, Judged, Prediction, Score
from additive_jax.report.page import Piece

HEADING = 'Every + is a switch'
SEVERAL = 'Every + is a switch, in every run'
# What a page's words have, in this version.
PARTS = {'gates', 'sites', 'fixed', 'shared', 'cost', 'note', 'count', 'bits', 'judged'}
PARTS |= {'ranks', 'comparable'}
_SCRIPT = '<script type="application/{}">(.*?)</script>'
# What ± is, beside a number.
INTERVALS, PREDICTED = '95 % interval over the seeds', '95 % of predictions'
MOST = 2**20  # structures of one page: some 16 MB with a loss, its interval and a metric


def explorer(shown: Explorer) -> Piece:
  """Returns the part of a page in which a network's gates are switches.

  Of more than 2^20 structures it has the first ones, which are the best, and says so.
  """
  note, count = shown.note, shown.num_structures
  if count > MOST:
    shown = _first(shown, MOST)
    note = f'{note} Of {count:,} structures the best {MOST:,} are in this page.'.strip()
  blocks: list[str] = []

  def block(values: Shaped[np.ndarray, '...']) -> int:
    blocks.append(base64.b64encode(np.ascontiguousarray(values).tobytes()).decode('ascii'))
    return len(blocks) - 1

  words = {
    'gates': [dataclasses.asdict(gate) for gate in shown.gates],
    'sites': [dataclasses.asdict(site) for site in shown.sites],
    'fixed': dataclasses.asdict(shown.fixed),
    'shared': [{'params': params, 'gates': list(gates)} for params, gates in shown.shared],
    'cost': shown.cost,
    'note': note,
    'count': shown.num_structures,
    'bits': block(np.packbits(shown.bits, axis=1, bitorder='little')),
    'ranks': None if shown.ranks is None else block(shown.ranks.astype('<i4')),
    'comparable': None if shown.comparable is None else block(shown.comparable.astype('u1')),
    'judged': [_judged(judged, block) for judged in shown.judged],
  }
  content = {'heading': HEADING, 'note': note, 'words': Markup(script_json(words))}
  return Piece('explorer', content | {'blocks': [Markup(one) for one in blocks]})


def read_explorer(html: str, heading: str = HEADING) -> Piece | None:
  """Returns the explorer of a page as a part of another one, under a heading of its own; None for
  a page without one, or with one that is damaged.

  >>> read_explorer('<p>Nothing to switch</p>') is None
  True
  """
  words = re.search(_SCRIPT.format('json'), html, re.DOTALL)
  blocks = [one.strip() for one in re.findall(_SCRIPT.format('octet-stream'), html, re.DOTALL)]
  if words is None or not all(re.fullmatch(r'[A-Za-z0-9+/]*=*', one) for one in blocks):
    return None
  try:
    told = json.loads(words[1])
  except ValueError:
    return None
  if not isinstance(told, dict) or not set(told) >= PARTS:
    return None
  content = {'heading': heading, 'note': told['note'], 'words': Markup(script_json(told))}
  return Piece('explorer', content | {'blocks': [Markup(one) for one in blocks]})


@dataclasses.dataclass(frozen=True)
class OfRun:
  """The explorer of one of several runs.

  Attributes:
    name: of the run; unique.
    colour: of its points, such as #0072b2.
    data: the name of its data; losses on other data are not drawn beside it.
    folder: of the run, from the page, for commands that export; with slashes.
    piece: what `explorer` or `read_explorer` returns.
  """

  name: str
  colour: str
  data: str
  folder: str
  piece: Piece


def explorers(runs: Sequence[OfRun], note: str = '') -> Piece | None:
  """Returns a part of a page with a tab for each run, which shows its explorer; None for no runs.

  Runs with the same gates, on the same data, are drawn in one scatter, and each tells what the
  others have of the structure that is set.

  >>> explorers([]) is None
  True

  Args:
    runs: in the order of the tabs.
    note: what else is to be said, in a sentence or two.
  """
  networks: dict[tuple[str, str], int] = {}
  shown = []
  for run in runs:
    network = networks.setdefault((run.data, _gates_of(run.piece)), len(networks))
    shown.append({'network': network, 'run': run, 'part': run.piece.content})
  alike = len(networks) < len(runs)
  content = {'heading': SEVERAL, 'note': note, 'runs': shown, 'alike': alike}
  return Piece('explorers', content) if runs else None


def _gates_of(piece: Piece) -> str:
  """Returns a text that is the same for explorers whose structures mean the same gates."""
  told = json.loads(piece.content['words'])
  gates = [(gate['name'], gate['within']) for gate in told['gates']]
  return json.dumps([gates, told['sites']])


def script_json(value: Any) -> str:
  """Returns a value as JSON that may stand inside of a script element: without <, > and &, and null
  for what is not finite.

  >>> script_json({'</script>': float('nan')})
  '{"\\\\u003c/script\\\\u003e":null}'
  """
  text = json.dumps(_finite(value), separators=(',', ':'), allow_nan=False)
  for character in '<>&':
    text = text.replace(character, f'\\u{ord(character):04x}')
  return text


def _judged(judged: Judged, block) -> dict[str, Any]:
  prediction = judged.prediction
  scores = [_score(score, block) for score in judged.scores]
  return {
    'label': judged.label,
    'scores': scores,
    'intervals': INTERVALS if scores and scores[0]['halfWidths'] is not None else '',
    'prediction': None if prediction is None else _prediction(prediction),
    'effects': _listed(judged.effects),
    'effectHalfWidths': _listed(judged.effect_half_widths),
    'effectMeaning': judged.effect_meaning,
    'export': dataclasses.asdict(judged.export),
  }


def _score(score: Score, block) -> dict[str, Any]:
  widths = score.half_widths
  known = widths is not None and bool(np.isfinite(widths).any())
  return {
    'label': score.label,
    'values': block(score.values.astype('<f4')),
    'halfWidths': block(widths.astype('<f4')) if known and widths is not None else None,
    'lowerIsBetter': score.lower_is_better,
    'difference': score.difference,
  }


def _prediction(found: Prediction) -> dict[str, Any]:
  upper = np.triu(found.pairs, 1)
  first, second = np.nonzero(upper)
  words = {key: getattr(found, key) for key in ('constant', 'structures', 'rmse', 'r2', 'tau')}
  return words | {
    'intervals': PREDICTED,
    'alone': found.alone.tolist(),
    'only': [None if value < 0 else value for value in found.only.tolist()],
    'pairs': [first.tolist(), second.tolist(), upper[first, second].tolist()],
  }


def _listed(values: Float[np.ndarray, ' n'] | None) -> list[float] | None:
  return None if values is None else values.tolist()


def _first(shown: Explorer, count: int) -> Explorer:
  """Returns the explorer of the first structures alone."""

  def cut(values):
    return None if values is None else values[:count]

  judged = tuple(
    dataclasses.replace(
      one,
      scores=tuple(
        dataclasses.replace(s, values=s.values[:count], half_widths=cut(s.half_widths))
        for s in one.scores
      ),
    )
    for one in shown.judged
  )
  return dataclasses.replace(
    shown,
    bits=shown.bits[:count],
    judged=judged,
    ranks=cut(shown.ranks),
    comparable=cut(shown.comparable),
  )


def _finite(value: Any) -> Any:
  """Returns a value of JSON with None for what is not finite."""
  if isinstance(value, dict):
    return {key: _finite(one) for key, one in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(one) for one in value]
  if isinstance(value, float | np.floating):
    return float(value) if np.isfinite(value) else None
  return value.item() if isinstance(value, np.generic) else value
