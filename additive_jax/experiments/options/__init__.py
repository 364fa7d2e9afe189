"""The options of a run, each declared once: name, default, meaning, and what is allowed.

`general`, `routed`, `pruning` and `studies` declare them, and `reading` makes checked `Options` of
a config. The page `configs/default.py` shows them all; `python tests/options_page.py` writes it.
"""

from additive_jax.experiments.options.general import (
  DataOptions,
  ModelOptions,
  TaskOptions,
  TrainOptions,
)
from additive_jax.experiments.options.reading import (
  DECLARED,
  PLACEMENT,
  WORDS,
  Option,
  identity,
  named,
  options_of,
  read_options,
  read_section,
  refused,
  replaced,
  selected,
  value_of,
)
from additive_jax.experiments.options.rules import parse_shard
from additive_jax.experiments.options.studies import Options

__all__ = [
  'DECLARED',
  'PLACEMENT',
  'WORDS',
  'DataOptions',
  'ModelOptions',
  'Option',
  'Options',
  'TaskOptions',
  'TrainOptions',
  'identity',
  'named',
  'options_of',
  'parse_shard',
  'read_options',
  'read_section',
  'refused',
  'replaced',
  'selected',
  'value_of',
]
