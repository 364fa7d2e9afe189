"""Tables of several runs side by side: rows that two of them have, a column for each run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from additive_jax.report import figures
from additive_jax.report.figures.style import Colours
from additive_jax.report.page import Piece, picture, table, text
from additive_jax.report.rankings import kendall_tau
from additive_jax.report.wording import format_value, plain, score_name

Tables = Mapping[str, Mapping[str, pd.DataFrame]]  # of each run, by name

MAX_ROWS = 200
MAX_DRAWN = 24  # rows of a picture
MEASURES = ('loss', 'accuracy', 'r2', 'perplexity', 'f1', 'flops', 'params', 'seconds')
HAVE_THEIR_OWN = ('structures', 'variants', 'effects', 'interactions', 'cosines')


def structures(tables: Tables, colours: Colours) -> Iterator[Piece | None]:
  """Yields the pieces about structures: fronts, agreement of rankings, and losses side by side."""
  frames = {n: _on_test(own['structures']) for n, own in tables.items() if 'structures' in own}
  frames = {n: frame for n, frame in frames.items() if 'loss' in frame and len(frame)}
  with_flops = {n: frame for n, frame in frames.items() if 'flops' in frame}
  caption = (
    'Test loss of every structure against its FLOPs, lower is better; each line is the Pareto '
    'front of a run.'
  )
  if with_flops:
    yield picture(figures.fronts(with_flops, colours), caption)
  for group in _same_gates(frames):
    yield _ranked_alike(group)
    words = 'Structures that two runs have, in the order of the first one that has them.'
    yield _table(group, 'structure', words)


def _on_test(frame: pd.DataFrame) -> pd.DataFrame:
  """Returns a table of structures whose scores are those on the test split, as in a sweep, which
  ranks by another one, only `test_loss` and so on are."""
  own = [str(name) for name in frame if str(name).startswith('test_')]
  if 'test_loss' not in own:
    return frame
  scores = [name.removeprefix('test_') for name in own]
  frame = frame.drop(columns=scores, errors='ignore').rename(columns=dict(zip(own, scores)))
  return frame[frame['loss'].notna()]


def _same_gates(frames: Mapping[str, pd.DataFrame]) -> list[dict[str, pd.DataFrame]]:
  """Returns runs whose structures have as many gates together, where there are two; not those that
  have a structure several times, of networks of several sizes."""
  groups: dict[int, dict[str, pd.DataFrame]] = {}
  for name, frame in frames.items():
    if frame['structure'].is_unique:
      groups.setdefault(len(str(frame['structure'].iloc[0])), {})[name] = frame
  return [group for group in groups.values() if len(group) > 1]


def _ranked_alike(frames: Mapping[str, pd.DataFrame]) -> Piece | None:
  """Returns how far each run ranks structures as the first does: Kendall's τ of their losses."""
  (first, base), *rest = frames.items()
  sentences = []
  for name, frame in rest:
    both = base.merge(frame, on='structure', suffixes=('', '_other'))
    tau = kendall_tau(both['loss'], both['loss_other']) if len(both) > 1 else np.nan
    if np.isfinite(tau):
      shared = f'{len(both):,} structures that both have'
      sentences.append(f'{name} and {first} rank the {shared} with Kendall τ {format_value(tau)}.')
  return text(' '.join(sentences)) if sentences else None


def variants(tables: Tables, colours: Colours) -> Iterator[Piece | None]:
  """Yields the pieces about arms, ways of training: a picture and a table."""
  frames = {name: own['variants'] for name, own in tables.items() if 'variants' in own}
  if len(frames) < 2:
    return
  yield _picture(frames, 'variant', 'loss', colours, 'test loss', 'Test loss of each arm')
  yield _table(frames, 'variant', 'Each arm that two runs have, on the test split.')


def gates(tables: Tables, colours: Colours) -> Iterator[Piece | None]:
  """Yields the pieces about gates: what switching one on does to the loss."""
  frames = {
    name: own['effects'].rename(columns={'ci95': 'effect_ci95'})
    for name, own in tables.items()
    if 'effects' in own
  }
  if len(frames) < 2:
    return
  what = 'change of the loss when the gate is on'
  words = 'What each gate does to the loss; below zero it helps'
  yield _picture(frames, 'gate', 'effect', colours, what, words)
  yield _table(frames, 'gate', f'{words}.', ('effect',))


def others(tables: Tables) -> Iterator[Piece | None]:
  """Yields the tables that two runs have and that name their rows alike."""
  names = dict.fromkeys(name for own in tables.values() for name in own)
  for name in names:
    frames = {run: own[name] for run, own in tables.items() if name in own and len(own[name])}
    keys = {str(frame.columns[0]) for frame in frames.values()}
    if name in HAVE_THEIR_OWN or len(frames) < 2 or len(keys) > 1:
      continue
    key = keys.pop()
    if all(frame[key].is_unique for frame in frames.values()):
      yield _table(frames, key, f'{plain(name).capitalize()} ({name}.csv).')


def joined(
  frames: Mapping[str, pd.DataFrame], key: str, measures: Sequence[str] = MEASURES
) -> pd.DataFrame:
  """Returns the rows that at least two runs have, and for each measure a column of each run; of the
  first measure also how far each other run is from the first one.

  >>> a = pd.DataFrame({'gate': ['x', 'y'], 'loss': [1.0, 2.0]})
  >>> joined({'one': a, 'two': a.head(1)}, 'gate')
    gate  loss, one  loss, two  loss, two − one
  0    x        1.0        1.0              0.0
  """
  indexed = {name: frame.set_index(key) for name, frame in frames.items()}
  order = list(dict.fromkeys(row for frame in indexed.values() for row in frame.index))
  rows = [row for row in order if sum(row in frame.index for frame in indexed.values()) > 1]
  columns: dict[str, pd.Series] = {}
  for measure in measures:
    having = [name for name, frame in indexed.items() if measure in frame]
    if len(having) < 2:
      continue
    word = score_name(measure)
    for name in having:
      values = indexed[name].reindex(rows)
      columns[f'{word}, {name}'] = values[measure]
      if f'{measure}_ci95' in values:
        columns[f'{word}, {name}, ci95'] = values[f'{measure}_ci95']
    for name in having[1:] if measure == measures[0] else ():
      base = columns[f'{word}, {having[0]}']
      columns[f'{word}, {name} − {having[0]}'] = columns[f'{word}, {name}'] - base
  return pd.DataFrame(columns, index=rows).rename_axis(key).reset_index()


def _table(frames, key, caption, measures=MEASURES) -> Piece | None:
  shown = joined(frames, key, measures)
  return table(shown, caption, MAX_ROWS) if len(shown) and len(shown.columns) > 1 else None


def _picture(frames, key, measure, colours, axis, caption) -> Piece | None:
  """Returns a picture of a measure of rows that two runs have, a mark for each run."""
  rows = joined(frames, key, (measure,))[key].tolist()[:MAX_DRAWN]
  parts = [
    frame[frame[key].isin(rows)].rename(columns={key: 'label'}).assign(variant=name)
    for name, frame in frames.items()
    if measure in frame
  ]
  if not rows:
    return None
  drawn = pd.concat(parts)
  drawn = drawn.assign(label=pd.Categorical(drawn['label'], rows)).sort_values('label')
  drawn = drawn.assign(label=drawn['label'].astype(str))
  order = {name: number for number, name in enumerate(frames)}
  drawn = drawn.sort_values('variant', key=lambda v: v.map(order), kind='stable')
  whole = f'{caption}, with 95 % intervals where there are several seeds.'
  return picture(figures.comparison(drawn, measure, colours, axis), whole)
