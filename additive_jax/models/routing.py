"""What sites with a router have in common: how tokens choose structures, and what they leave."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Bool, Int

from additive_jax.errors import UserError
from additive_jax.gates import routers
from additive_jax.gates.structure import bits_of, parse

ROUTERS = ('softmax', 'factorised', 'marginal', 'random')

# The collections in which sites leave what their routers did: means over the batch, and the choice
# of every token.
ROUTING = 'routing'
CHOICES = 'choices'
# Leaves of the pool that steer a choice without entering its weights.
SELECTION_BIAS = 'selection_bias'
KEEP_BIAS = 'keep_bias'  # of the gates that tokens have of their own


class Chosen(NamedTuple):
  """The choice of every token.

  Attributes:
    indices: the k structures, experts or modules of each, by number in the router's list (of all
      structures: as integers); None where nothing is chosen, or 2^n is too large for an int32.
    on: which tokens the branch computed; None for all.
  """

  indices: Int[Array, 'B T k'] | None
  on: Bool[Array, 'B T'] | None = None


def leave(site: nn.Module, facts: routers.Facts, chosen: Chosen) -> None:
  """Leaves what a router did for callers who ask for `ROUTING` or `CHOICES`; the pool that `init`
  gives is parameters alone.

  Args:
    site: the bound module whose router it was.
    facts: means over the batch.
    chosen: the choice of every token.
  """
  if not site.is_initializing():
    for collection, value in ((ROUTING, facts), (CHOICES, chosen)):
      site.sow(collection, 'left', value, reduce_fn=lambda _, new: new, init_fn=lambda: None)


@dataclasses.dataclass(frozen=True)
class Routing:
  """How tokens choose structures.

  Attributes:
    router: 'softmax' over a list of structures, of which each token takes `top_k`; 'factorised',
      one logit a gate and the exact `top_k` best of all structures; 'marginal', the exact mixture
      of all structures under independent gates; 'random', `top_k` of the list at random by position
      and step, the control.
    top_k: k.
    renormalise: the weights of a token's k structures sum to 1; otherwise they are probabilities
      under the router.
    structures: the list, as texts of m − 1 gates; () is all 2^(m−1). For 'softmax' and 'random'.
    keep: the target share of tokens that the branch computes. Below 1 a second router gives each
      token a residual gate of its own: on where its score, moved by a bias that steers the share
      (`balance`), is positive; what the branch adds is then weighted by the sigmoid of the score,
      and tokens that are off are not computed.
    shared: one router for all layers, each on its own stream, instead of one per layer; biases
      that balance the load stay each layer's own.

  >>> Routing(structures=('000', '111')).listed(3).astype(int).tolist()
  [[0, 0, 0], [1, 1, 1]]
  """

  router: str = 'softmax'
  top_k: int = 2
  renormalise: bool = False
  structures: tuple[str, ...] = ()
  keep: float = 1.0
  shared: bool = False

  def check(self, num_gates: int) -> None:
    """Raises `UserError` where router, k and list do not suit m − 1 gates."""
    if self.router not in ROUTERS:
      raise UserError(f'router {self.router!r}: expected one of {", ".join(ROUTERS)}')
    if not 0 < self.keep <= 1:
      raise UserError(f'keep {self.keep}: expected a share of tokens in (0, 1]')
    if self.router in ('factorised', 'marginal') and self.structures:
      raise UserError(
        f'{len(self.structures)} listed structures for the router {self.router!r}: expected none, '
        'since it takes all'
      )
    if self.router == 'factorised':
      routers.check_k(self.top_k, 2**num_gates)
    elif self.router != 'marginal':
      routers.check_k(self.top_k, len(self.listed(num_gates)))

  def listed(self, num_gates: int) -> Bool[np.ndarray, 'S n']:
    """Returns the list of structures of m − 1 gates.

    Raises:
      UserError: where one is listed twice, or they are all, and too many.
    """
    if not self.structures:
      return routers.enumerated(num_gates)
    structures = [parse(text, num_gates) for text in self.structures]
    for i, structure in enumerate(structures):
      if structure in structures[:i]:
        raise UserError(f'structure {structure} is listed twice: expected each once')
    return bits_of(structures, num_gates)

  def num_logits(self, num_gates: int) -> int:
    """Returns how many logits the router gives: one a structure of the list, or one a gate.

    >>> Routing('softmax').num_logits(3), Routing('factorised').num_logits(3)
    (8, 3)
    """
    return len(self.listed(num_gates)) if self.router == 'softmax' else num_gates


def linear_router(count: int, name: str | None = 'router') -> nn.Dense:
  """Returns the router of `count` logits: linear, without a bias."""
  return nn.Dense(count, use_bias=False, name=name)
