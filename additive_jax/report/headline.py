"""What a finished run comes to, in one line, whatever the experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from additive_jax.report.wording import format_value, plain, score_name

# Metrics by which a headline is known, the first that there is.
METRICS = ('accuracy', 'r2', 'f1', 'f1_macro', 'f1_micro', 'perplexity', 'mae', 'rmse')


class Headline(NamedTuple):
  """The best network of a run.

  Attributes:
    network: what it is: a structure, or the name of an arm.
    loss: on the split that the run reports; None where there is none.
    metric: the name of the first metric; '' for none.
    score: its value.
  """

  network: str
  loss: float | None
  metric: str = ''
  score: float | None = None

  def __str__(self) -> str:
    texts = [self.network] if self.network else []
    if self.loss is not None:
      texts.append(f'loss {format_value(self.loss)}')
    if self.metric:
      texts.append(f'{score_name(self.metric)} {format_value(self.score)}')
    return ', '.join(texts)


def headline(summary: Mapping[str, Any]) -> Headline | None:
  """Returns the best network of a finished run, by its summary; None where that names none.

  In a sweep and of networks that were trained together it is the best structure, of `prune` the
  smaller network, in other experiments the arm of the lowest loss.

  >>> str(headline({'best_structure': '101', 'best_loss': 0.25, 'best_accuracy': 0.91}))
  '101, loss 0.2500, accuracy 0.9100'
  """
  if after := _section(summary, 'after'):
    return _of(after, str(after.get('structure', '')))
  if 'best_loss' in summary:
    best = {key.removeprefix('best_'): value for key, value in summary.items()}
    return _of(best, str(summary.get('best_structure', '')))
  arms = {name: arm for name, arm in _section(summary, 'variants').items() if _is_scored(arm)}
  if arms:
    best = min(arms, key=lambda name: arms[name]['loss'])
    return _of(arms[best], plain(best))
  if _is_scored(summary):
    return _of(summary, 'mean of the structures' if 'alone_loss' in summary else '')
  return None


def _section(summary, name):
  value = summary.get(name)
  return value if isinstance(value, Mapping) else {}


def _is_scored(scores):
  return isinstance(scores, Mapping) and isinstance(scores.get('loss'), int | float)


def _of(scores, network):
  metric = next((name for name in METRICS if isinstance(scores.get(name), int | float)), '')
  return Headline(network, scores.get('loss'), metric, scores.get(metric) if metric else None)
