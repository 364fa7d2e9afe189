"""What the tokens of a DNA do: statistics of their paths, and tables of modules and of tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from additive_jax.models.dna import DNA
from additive_jax.report import paths


@dataclasses.dataclass(frozen=True)
class Analysis:
  """The paths of some test examples in one network.

  Attributes:
    names: of the modules.
    identity: which of them compute nothing, bool [M].
    chosen: [N, T, S, k].
    codes: a number for each path, [N, T]; 0 is the most frequent.
    fit: of a power law to rank and frequency of the paths.
    compute: share of each token's choices that are not identities, [N, T].
    class_names: of what tokens are told apart by: kinds of bytes, or labels.
    classes: of each token [N, T], or of each image [N].
    tokens: bytes [N, T], or images.
    lift, share: [M, C], see `paths.specialisation`.
    bits: per step, what modules tell about classes, see `paths.information`.
    flows: [S − 1, M, M], see `paths.flows`.
    reuse: [M, S + 1], see `paths.reuse`.
  """

  names: list[str]
  identity: np.ndarray
  chosen: np.ndarray
  codes: np.ndarray
  fit: paths.PowerLaw
  compute: np.ndarray
  class_names: list[str]
  classes: np.ndarray
  tokens: np.ndarray
  lift: np.ndarray
  share: np.ndarray
  bits: paths.Information
  flows: np.ndarray
  reuse: np.ndarray

  @property
  def is_text(self) -> bool:
    return self.classes.ndim == 2

  def figures(self) -> dict:
    """For the summary."""
    return {
      'paths': self.fit.num_paths,
      'path_exponent': self.fit.exponent,
      'path_exponent_ci95': [self.fit.low, self.fit.high],
      'compute_share': float(self.compute.mean()),
      'uses_per_module': paths.mean_uses(self.reuse, self.identity),
      'class_bits': self.bits.bits.tolist(),
      'class_bits_by_chance': self.bits.shuffled.tolist(),
    }


def module_names(model: DNA) -> list[str]:
  """Such as `attention 0` and `identity 1`, in the order of their numbers."""
  kinds = ('attention', 'mlp', 'block', 'identity')
  return [f'{kind} {i}' for kind in kinds for i in range(getattr(model.modules, kind))]


def analyse(model: DNA, chosen: np.ndarray, x: np.ndarray, y: np.ndarray) -> Analysis:
  """The analysis of what the tokens of examples (x, y) chose, int [N, T, S, k]."""
  names = module_names(model)
  identity = np.array([name.startswith('identity') for name in names])
  if model.num_tokens:
    classes, class_names = paths.byte_classes(x), list(paths.BYTE_CLASSES)
  else:
    classes = y.astype(np.int64)
    class_names = [str(label) for label in range(model.num_classes)]
  count = len(names)
  codes, special = (
    paths.path_codes(chosen),
    paths.specialisation(chosen, classes, count, len(class_names)),
  )
  return Analysis(
    names,
    identity,
    chosen,
    codes,
    paths.fit_power_law(codes),
    paths.compute_share(chosen, identity),
    class_names,
    classes,
    x,
    special.lift,
    special.share,
    paths.information(chosen, classes, count, len(class_names)),
    paths.flows(chosen, count),
    paths.reuse(chosen, count),
  )


def module_table(found: Analysis) -> pd.DataFrame:
  """One row per module: its load over the even one at each step and in all, the share of tokens
  that use it, and of each class among them."""
  count, steps = len(found.names), found.chosen.shape[2]
  table = pd.DataFrame({'module': found.names})
  table['load'] = paths.utilisation(found.chosen, count)
  for step in range(steps):
    table[f'load_step_{step:02}'] = paths.utilisation(found.chosen[:, :, step], count)
  table['token_share'] = 1 - found.reuse[:, 0] / found.reuse.sum(1)
  for number, name in enumerate(found.class_names):
    table[f'share_{name.replace(" ", "_")}'] = found.share[:, number]
  return table


def path_table(found: Analysis) -> pd.DataFrame:
  """One row per token: its example and position, byte or label, path, how often that path is taken,
  and its compute."""
  examples, tokens, steps, _ = found.chosen.shape
  example, position = np.divmod(np.arange(examples * tokens), tokens)
  table = pd.DataFrame({'example': example, 'position': position})
  if found.is_text:
    table['byte'] = found.tokens.reshape(-1)
    table['class'] = np.array(found.class_names)[found.classes.reshape(-1)]
  else:
    table['class'] = np.repeat(np.array(found.class_names)[found.classes], tokens)
  names = np.array(found.names)
  for step in range(steps):
    sets = np.sort(found.chosen[:, :, step], axis=-1).reshape(examples * tokens, -1)
    table[f'step_{step:02}'] = [' + '.join(names[row]) for row in sets]
  table['path'] = found.codes.reshape(-1)
  table['path_tokens'] = np.bincount(found.codes.reshape(-1))[found.codes.reshape(-1)]
  table['compute'] = found.compute.reshape(-1)
  return table
