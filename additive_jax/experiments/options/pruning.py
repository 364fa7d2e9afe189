"""The options of `prune`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from additive_jax.experiments.options.rules import (
  Count,
  Few,
  FewOrNone,
  Later,
  NotNegative,
  Positive,
  Rule,
  Share,
  Whole,
  one_of,
)
from additive_jax.search import BY_BUDGET
from additive_jax.search.costs import KINDS

FLOATS = ('float32', 'bfloat16', 'float16')
_METHODS = tuple(BY_BUDGET)
_BASELINES = Rule(
  f'some of {", ".join(_METHODS)}, each once, or none',
  lambda values: set(values) <= set(_METHODS) and len(set(values)) == len(values),
)


@dataclasses.dataclass(frozen=True)
class PruneOptions:
  """Prune: a pool (trained, or `init_from` or `pretrained`) is searched under a budget, its best
  structures are healed together and ranked again, and the best one is cut out and exported."""

  budget: Later[Positive] = 0.6
  """Share of what the full network costs, up to 1; above 1 that many of the unit."""
  cost: Later[Annotated[str, one_of(*KINDS)]] = 'flops'
  """The unit: 'flops' of an example's forward pass, 'params', or 'latency', seconds of an example's
  forward pass, measured on this device."""
  of: Later[Annotated[str, one_of('network', 'gates')]] = 'network'
  """What a share is of: all of the network, or what the gates switch: of a language model its body
  without the embedding."""
  method: Later[Annotated[str, one_of('', *_METHODS)]] = ''
  """How structures are searched; '' ranks all networks within the budget up to 4,096 of them, and
  is 'bayesian' of more."""
  baselines: Later[Annotated[tuple[str, ...], _BASELINES]] = ()
  """Methods that are shown beside it, each on the same calibration sets."""
  evaluations: Later[Whole] = 0
  """The most evaluations that each method may make on a calibration set; 0 is what it takes."""
  levels: Later[Few] = 3
  """Budgets in equal steps from all-on at which the methods are compared."""
  sets: Later[Few] = 1
  """Calibration sets, drawn from the split to choose by, which searches see one at a time; the
  intervals of methods are over them."""
  calibration_examples: Later[Whole] = 0
  """Examples of each; 0 is all of the split, with one set."""
  ranked: Later[Few] = 64
  """Of what each of several sets has found, so many are ranked on the whole split."""
  candidates: Later[Few] = 1
  """K: the best structures, which are healed together in one pool, and ranked again after that."""
  alone: Later[bool] = False
  """Whether the first of them is healed alone too, to compare; with several candidates."""
  heal_epochs: Later[NotNegative] = 2.0
  """Passes over the training set of healing; 0 is none."""
  teacher: Later[Share] = 0.5
  """Weight of what the full network before healing says, beside the labels; only with classes. Its
  last streams are kept for all training examples, and what reads them out stays as it is. 0 is no
  teacher."""
  temperature: Later[Positive] = 1.0
  """What softens both."""
  dtype: Later[Annotated[str, one_of('', *FLOATS)]] = ''
  """Of the exported files of a pretrained network: 'float32', 'bfloat16' or 'float16'; '' is that
  of the files it was loaded from, float32 of quantised ones."""
  samples: Later[FewOrNone] = 2
  """Continuations of test texts that are shown side by side, of a causal language model."""
  sample_tokens: Later[Count] = 32
  """Tokens of each."""
