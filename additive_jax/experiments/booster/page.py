"""The page that Exp 5 leaves: pictures first."""

from __future__ import annotations

import numpy as np
import pandas as pd

from additive_jax.data.clusters import nearest_examples, quality
from additive_jax.data.ngrams import telling_ngrams
from additive_jax.data.weights import unweighted
from additive_jax.experiments.booster.groups import clusters_of, features_of
from additive_jax.experiments.booster.tables import METHODS, SCRATCH
from additive_jax.experiments.pages import intervals, over_seeds
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.study import Result
from additive_jax.report import figures
from additive_jax.report.figures.booster import FLOPS, NAMES
from additive_jax.report.page import Page, Piece, picture, section, table, text, tiles
from additive_jax.report.wording import counted, score_name, with_margin
from additive_jax.run.objectives import labels_of
from additive_jax.transplant import wiring_of

TICKS = ('busy', 'microbatch', 'forward', 'backward')


def page(session: Session, result: Result, records: Records) -> Page:
  """Returns the page of Exp 5."""
  ways = [way for way in records.arms.values() if way.narrow]
  narrows, bubble = {way.name: way.narrow for way in ways}, result.extras['bubble']
  return Page(
    f'{type(session.model).__name__} started from small ones, on {session.data.name}',
    tiles(_facts(session, result)),
    _savings(session, result, _narrow_words(session, result.summary['narrow'], narrows)),
    section('Clusters', *_clusters(session, narrows)),
    section('The pipeline', _timeline(bubble)) if bubble else None,
    section(
      'Tables',
      table(result.variants, 'Each way of training; “minus scratch” is paired by seed.'),
      table(
        result.receipts,
        'Receipts: max |Δoutput| between the large model and the mean of all small ones, and the '
        'one that was grown.',
      ),
      table(
        result.memory,
        'Bytes of the large model’s training on each device, measured from its arrays; gradients '
        'lie as the parameters do.',
      ),
      table(result.clusters, 'Sizes of the clusters.') if len(result.clusters) else None,
    ),
  )


def _clusters(session, narrows) -> list[Piece]:
  """Pictures and tables of the clusters of the first seed."""
  seed = session.config.seed
  chosen = {name: narrow for name, narrow in narrows.items() if name in METHODS}
  if not chosen:
    return []
  clusterings = [clusters_of(n, METHODS[name], seed).clusters for name, n in chosen.items()]
  named = {clusters.name: clusters for clusters in clusterings}
  features, _ = features_of(next(iter(chosen.values())), seed)
  return [
    picture(
      figures.cluster_sizes({name: clusters.sizes for name, clusters in named.items()}),
      'Training examples in each cluster, first seed; dashed: even.',
    ),
    picture(
      figures.cluster_maps(features, {name: clusters.labels for name, clusters in named.items()}),
      'Training examples on the first two principal components of what was clustered, first seed.',
    ),
    table(
      _qualities(session.data, features, named),
      'Silhouette: how much nearer an example is to its own cluster than to the next, −1 to 1; '
      'explained: share of the variance that lies between the centres; agreement with the labels: '
      'adjusted mutual information, 0 by chance. First seed.',
    ),
    *_examples(session.data, features, clusterings[0]),
  ]


def _examples(data, features, clusters) -> list[Piece]:
  if data.task_name == 'language':
    ngrams = telling_ngrams(data.train.x, clusters.labels)
    return [table(ngrams, f'What tells the clusters ({clusters.name}) apart, first seed.')]
  if len(data.example_shape) not in (2, 3):
    return []
  images = [np.asarray(data.train.x[rows]) for rows in nearest_examples(features, clusters)]
  return [
    picture(
      figures.cluster_examples(images, clusters.sizes),
      f'The images nearest the centre of each cluster ({clusters.name}), first seed.',
    )
  ]


def _qualities(data, features, named) -> pd.DataFrame:
  """A row for each way to cluster."""
  is_classes = data.task_name == 'classification'
  classes = labels_of(np.asarray(unweighted(data.train.y))) if is_classes else None
  rows = [
    {'clusters': name, **quality(features, clusters.labels, classes)._asdict()}
    for name, clusters in named.items()
  ]
  frame = pd.DataFrame(rows)
  return frame if classes is not None else frame.drop(columns='agreement')


def _facts(session, result):
  summary, forward = result.summary, session.space.flops(session.space.all_on())
  rows = result.variants[result.variants['variant'] != SCRATCH].set_index('variant')
  saved = {NAMES[name]: _saved(row) for name, row in rows.iterrows()}
  first = next(iter(saved))
  return {
    f'{first}: FLOPs saved at equal loss': saved.pop(first),
    **saved,
    'FLOPs of a narrow model, of the large one': summary['narrow']['flops'] / forward,
    'largest |Δoutput| of a growth': summary['largest_difference'],
  }


def _saved(row):
  if not np.isfinite(row['saving']):
    return 'not reached'
  return with_margin(100 * row['saving'], 100 * row['saving_ci95'], 'z.1f', '\u00a0%')


def _savings(session, result, narrow_words):
  mean, task = over_seeds(session, 'mean over the seeds; '), session.task
  lower = [score for score in task.scores if task.sign(score) > 0]
  name = score_name(task.headline)
  return section(
    'What starting small saves',
    picture(
      figures.savings(result.curves, result.variants),
      'Left: test loss against the FLOPs of the whole training, forward and backward, '
      f'{mean}circles: where the large model begins; dashed: the lowest loss of training from '
      'scratch. Right: the share of FLOPs saved until that loss, paired by seed'
      f'{intervals(session)}. '
      'Everything counts: all narrow models, k-means, and the features that it is given '
      '(components of the inputs, or the model whose embedding they are).',
    ),
    picture(
      figures.spent(result.curves, 'flops', FLOPS, (task.headline,), lower),
      f'Test {name} against the same FLOPs; dashed: the best of training from scratch.',
    ),
    picture(
      figures.spent(
        result.curves,
        'seconds',
        'seconds of training and clustering',
        ('loss', task.headline),
        lower,
      ),
      f'Loss and {name} against measured time on this run’s devices, without compiling and '
      'judging. Each narrow model trains on one device: one alone leaves the others idle, and '
      'those that share a device take turns.',
    ),
    text(narrow_words),
  )


def _narrow_words(session, small, narrows):
  """What the narrow models are, and how they were joined."""
  options = session.config.booster
  narrow = max(narrows.values(), key=lambda narrow: narrow.num_models)
  every = counted(narrow.sync_every, 'step')
  apart = f'synchronised every {every}' if narrow.sync_every else 'never synchronised'
  if options.asynchronous:
    copies = f'{narrow.num_models} processes, each at its own pace, joined by “{options.join}”'
  elif narrow.num_models > 1:
    copies = f'{narrow.num_models} copies, {apart}, joined by “{options.join}”'
  else:
    copies = 'one copy'
  num_blocks = sum(map(len, wiring_of(session.model).blocks))
  return (
    f'Narrow models: {options.width:g} of the width, {len(small["blocks"])} of {num_blocks} '
    f'blocks, {small["steps"]} steps; {copies}.'
  )


def _timeline(bubble):
  return picture(
    figures.pipeline_timeline(*(bubble[part] for part in TICKS)),
    f'Ticks of one step on {len(bubble["busy"])} devices, by measured processor time of each, as '
    f'devices side by side would take them: {bubble["measured"]:.3f} of their time is idle; the '
    f'formula for equal ticks gives {bubble["formula"]:.3f}.',
  )
