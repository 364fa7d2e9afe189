"""The paths of tokens through a network whose modules they choose: statistics, and tables of
modules and of tokens. Letters are those of `paths`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Shaped

from additive_jax.report import paths, power_law


@dataclasses.dataclass(frozen=True)
class Analysis:
  """The paths of some test examples in one network.

  Attributes:
    names: of the modules; those that begin with `identity` compute nothing.
    chosen: what each token chose.
    tokens: bytes [N, T], or images.
    classes: of each token [N, T], or of each image [N].
    class_names: what tokens are told apart by: kinds of bytes, or labels.
  """

  names: Sequence[str]
  chosen: Int[np.ndarray, 'N T S k']
  tokens: Shaped[np.ndarray, 'N ...']
  classes: Int[np.ndarray, 'N ...']
  class_names: Sequence[str]

  @property
  def is_text(self) -> bool:
    """Whether each token has a class of its own."""
    return self.classes.ndim == 2

  @property
  def identity(self) -> Bool[np.ndarray, 'M']:
    """The modules that compute nothing, as a mask."""
    return np.array([name.startswith('identity') for name in self.names])

  @functools.cached_property
  def codes(self) -> Int[np.ndarray, 'N T']:
    """A number for each path; 0 is the most frequent."""
    return paths.path_codes(self.chosen)

  @functools.cached_property
  def fit(self) -> power_law.PowerLaw:
    """A power law of rank and frequency of the paths."""
    return power_law.fit_power_law(self.codes)

  @functools.cached_property
  def compute(self) -> Float[np.ndarray, 'N T']:
    """The share of each token's choices that compute something."""
    return paths.compute_share(self.chosen, self.identity)

  @functools.cached_property
  def specialisation(self) -> paths.Specialisation:
    """How modules and classes go together."""
    return paths.specialisation(self.chosen, self.classes, len(self.names), len(self.class_names))

  @functools.cached_property
  def information(self) -> paths.Information:
    """The bits that modules tell about classes, at each step."""
    return paths.information(self.chosen, self.classes, len(self.names), len(self.class_names))

  @functools.cached_property
  def flows(self) -> Float[np.ndarray, 'steps M M']:
    """The share of tokens that go from one module to another, at each step but the last."""
    return paths.flows(self.chosen, len(self.names))

  @functools.cached_property
  def reuse(self) -> Int[np.ndarray, 'M uses']:
    """The number of tokens that use each module 0, 1, … times."""
    return paths.reuse(self.chosen, len(self.names))

  def figures(self) -> dict[str, Any]:
    """Returns the headline figures."""
    return {
      **self.fit.figures(),
      'compute_share': float(self.compute.mean()),
      'uses_per_module': paths.mean_uses(self.reuse, self.identity),
      'class_bits': self.information.bits.tolist(),
      'class_bits_by_chance': self.information.shuffled.tolist(),
    }

  def module_table(self) -> pd.DataFrame:
    """Returns a row for each module: its load over the even one at each step and in all, the share
    of tokens that use it, and of each class among them."""
    count, steps = len(self.names), self.chosen.shape[2]
    table = pd.DataFrame({'module': self.names})
    table['load'] = paths.utilisation(self.chosen, count)
    for step in range(steps):
      table[f'load_step_{step:02}'] = paths.utilisation(self.chosen[:, :, step], count)
    table['token_share'] = 1 - self.reuse[:, 0] / self.reuse.sum(1)
    for number, name in enumerate(self.class_names):
      table[f'share_{name.replace(" ", "_")}'] = self.specialisation.share[:, number]
    return table

  def path_table(self) -> pd.DataFrame:
    """Returns a row for each token: its example and position, byte or label, path, how often that
    path is taken, and its compute."""
    examples, tokens, steps, _ = self.chosen.shape
    example, position = np.divmod(np.arange(examples * tokens), tokens)
    table = pd.DataFrame({'example': example, 'position': position})
    names, class_names = np.array(self.names), np.array(self.class_names)
    if self.is_text:
      table['byte'] = self.tokens.reshape(-1)
      table['class'] = class_names[self.classes.reshape(-1)]
    else:
      table['class'] = np.repeat(class_names[self.classes], tokens)
    for step in range(steps):
      sets = np.sort(self.chosen[:, :, step], axis=-1).reshape(examples * tokens, -1)
      table[f'step_{step:02}'] = [' + '.join(names[row]) for row in sets]
    table['path'] = self.codes.reshape(-1)
    table['path_tokens'] = np.bincount(self.codes.reshape(-1))[self.codes.reshape(-1)]
    table['compute'] = self.compute.reshape(-1)
    return table
