"""What can be said of the options of a run whatever its experiment."""

from __future__ import annotations

import re

from ml_collections import ConfigDict

from additive_jax.errors import UserError
from additive_jax.parallel.pipeline_schedule import SCHEDULES


def check_config(config: ConfigDict) -> None:
  """Raises `UserError` for an option that is out of range, whatever the experiment."""
  at_least_one = [
    'num_seeds',
    'train.batch_size',
    'train.structures_per_step',
    'train.log_every',
    'train.expert_devices',
    'train.pipe_devices',
    'train.microbatches',
    'train.pipe_repeats',
    'train.checkpoint_every',
    'sweep.top_k',
    'sweep.rungs',
    'search.budget',
    'search.population',
    'stochastic.stages',
    'stochastic.parts',
    'stochastic.num_structures',
    'experts.num_structures',
    'dna.examples',
    'booster.num_models',
  ]
  for path in at_least_one:
    value = _at(config, path)
    if value < 1:
      raise UserError(f'config.{path} {value}: expected at least 1')
  for path in (
    'train.epochs',
    'cotrain.sweep_epochs',
    'booster.epochs',
    'booster.large_epochs',
    'booster.embedding_epochs',
  ):
    if not _at(config, path) > 0:
      raise UserError(f'config.{path} {_at(config, path)}: expected a positive number')
  for path in (
    'sweep.shared_epochs',
    'seed',
    'cotrain.top_k',
    'booster.sync_epochs',
    'booster.learning_rate',
    'booster.lone_learning_rate',
    'booster.large_learning_rate',
  ):
    if _at(config, path) < 0:
      raise UserError(f'config.{path} {_at(config, path)}: expected 0 or more')
  if config.train.pipe_schedule not in SCHEDULES:
    raise UserError(
      f'config.train.pipe_schedule {config.train.pipe_schedule!r}: expected one of '
      f'{", ".join(SCHEDULES)}'
    )
  parse_shard(config.shard)


def check_unsharded(config: ConfigDict) -> None:
  """Raises `UserError` for a shard of an experiment that has none."""
  if config.shard:
    raise UserError(f'config.shard {config.shard!r}: expected none, a pool is trained as one')


def parse_shard(text: str) -> tuple[int, int]:
  """`'3/16'` as (3, 16); `''` is (0, 1), the whole."""
  if not text:
    return 0, 1
  match = re.fullmatch(r'(\d+)/(\d+)', text)
  if not match or not int(match[1]) < int(match[2]):
    raise UserError(f'config.shard {text!r}: expected I/N with 0 <= I < N, such as 0/4')
  return int(match[1]), int(match[2])


def _at(config, path):
  for key in path.split('.'):
    config = config[key]
  return config
