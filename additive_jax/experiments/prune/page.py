"""The page that a pruning leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from additive_jax.experiments.pages import curves_picture, read_curves
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.study import Result
from additive_jax.report import figures
from additive_jax.report.page import Page, Piece, picture, section, table, text, tiles
from additive_jax.report.wording import WORDS, counted
from additive_jax.run.tasks import LOSS


def page(session: Session, result: Result, records: Records) -> Page:
  """Returns the page: what the smaller network costs and scores beside the full one, where the
  network does its work, and how the structure was found."""
  summary, kind = result.summary, session.config.prune.cost
  before, after = summary['before'], summary['after']
  facts: dict[str, Any] = {
    f'{WORDS[name]} left': f'{after[name] / before[name]:.1%}' for name in ('flops', 'params')
  }
  facts['faster'] = f'{before["seconds"] / after["seconds"]:.2f}×'
  for name, speed in summary.get('tokens_per_second', {}).items():
    facts[f'tokens a second, {name}'] = round(speed)
  for name, size in summary['bytes'].items():
    facts[f'megabytes, {name}'] = size / 1e6
  facts |= {f'test {LOSS}, {name}': summary[name][LOSS] for name in ('before', 'unhealed', 'after')}
  return Page(
    f'The smaller network within, on {session.data.name}',
    tiles(facts),
    _written(summary),
    section('What each part does', *_gates(result, summary)),
    section('How it was found', *_methods(result, kind)),
    section('Healing', *_healing(session, result, records)),
    section('How it goes on', _samples(result)),
    section(
      'Tables',
      table(result.networks, 'The full network, the chosen structure in its pool, and healed.'),
      table(
        result.candidates,
        f'Structures within the budget, best first by {session.chosen_word} loss.',
        max_rows=20,
      ),
      table(result.paths, 'The best structure at every cost, of each search.'),
    ),
    asks_of_gates=True,
  )


def _written(summary: dict[str, Any]) -> Piece | None:
  written, params = summary.get('written', 0), summary['after']['params']
  if written <= params:
    return None
  return text(
    f'The exported files hold {written:,.0f} parameters: other libraries have no layer with one of '
    f'its branches alone, so zeros stand for {written - params:,.0f} of them. '
    'With --config.model.kwargs.sites=layer whole layers are chosen, and the files are as small as '
    'the network.'
  )


def _gates(result: Result, summary: dict[str, Any]) -> list[Piece | None]:
  gates, fit = result.gates, summary['fit']
  told = 'Each part alone: by how much the loss of calibration examples grows without it.'
  picture_ = picture(figures.contributions(gates), told) if len(gates) <= 400 else None
  if fit is None or not np.isfinite(fit['r2']):
    return [picture_]
  words = (
    f'A sum over parts and pairs of parts, fitted to what the searches evaluated, tells the loss '
    f'of structures it has not seen with R² {fit["r2"]:.2f} and Kendall τ {fit["tau"]:.2f} '
    f'({counted(fit["structures"], "structure")}, predicted from the others).'
  )
  return [picture_, text(words), table(gates, 'What each part does, and costs.')]


def _methods(result: Result, kind: str) -> list[Piece | None]:
  methods = result.methods
  sets = int(methods['sets'].max())
  over = f'means over {counted(sets, "calibration set")}' if sets > 1 else 'one calibration set'
  told = f'Test {LOSS} before healing of the best structure of each method at each budget, {over}.'
  shown = methods.drop(columns=[c for c in map(str, methods) if c.endswith('_ci95') and sets == 1])
  return [
    picture(figures.search_paths(methods, kind), told) if len(methods) > 1 else None,
    table(
      shown,
      'The best structure of each method at each budget, a share of what the full network costs; '
      'one row where it is the same at several.',
    ),
  ]


def _healing(session: Session, result: Result, records: Records) -> list[Piece | None]:
  curves = figures.mean_curves(read_curves(session), names=list(records.arms))
  pieces: list[Piece | None] = [curves_picture(curves, 'Training loss.')]
  before, unhealed, after = (result.summary[n][LOSS] for n in ('before', 'unhealed', 'after'))
  if unhealed > before and session.config.prune.heal_epochs:
    closed = (unhealed - after) / (unhealed - before)
    pieces.append(
      text(
        f'Without the parts the test loss is {unhealed - before:.3f} higher; healing takes back '
        f'{closed:.0%} of that.'
      )
    )
  healed = result.candidates.dropna(subset=['healed_rank'])
  if len(healed) > 1:
    of_healing = [c for c in map(str, healed) if c.startswith('healed_')]
    columns = ['structure', 'rank', 'healed_rank', *of_healing]
    shown = healed[list(dict.fromkeys(columns))]
    pieces.append(table(shown, 'Candidates that were healed together, and their ranks after.'))
  return pieces


def _samples(result: Result) -> Piece | None:
  if 'samples' not in result.tables:
    return None
  frame = pd.DataFrame(result.samples).rename(
    columns={'prompt': 'beginning', 'text': 'as written', 'before': 'before', 'after': 'after'}
  )
  return table(frame, 'Each network goes on with the most likely token.')
