"""The studies that `config.experiment` names."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping

from additive_jax.experiments.study import Study

NAMES = ('sweep', 'cotrain', 'stochastic', 'experts', 'dna', 'booster', 'compress', 'prune')


class _Studies(Mapping[str, Study]):
  """Imports the module of a study when it is asked for, since some of them take a second."""

  def __getitem__(self, name: str) -> Study:
    if name not in NAMES:
      raise KeyError(name)
    return importlib.import_module(f'additive_jax.experiments.{name}').STUDY

  def __iter__(self) -> Iterator[str]:
    return iter(NAMES)

  def __len__(self) -> int:
    return len(NAMES)


STUDIES = _Studies()
