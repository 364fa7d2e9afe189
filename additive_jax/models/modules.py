"""The pool of a distributed neural architecture: modules of each kind, and how tokens choose."""

from __future__ import annotations

import dataclasses

from additive_jax.errors import UserError
from additive_jax.gates import routers
from additive_jax.models.kinds import check_sizes


@dataclasses.dataclass(frozen=True)
class Modules:
  """What the pool holds and how tokens choose from it.

  >>> modules = Modules(attention=2, mlp=4, identity=2, top_k=1)
  >>> modules.count
  8

  Attributes:
    attention, mlp, block, identity: how many modules of each kind, numbered in this order.
    top_k: k, modules of each token and step.
    renormalise: the weights of a token's k modules sum to 1; otherwise they are the softmax over
      all M.
    skip: r, the target share of choices that fall on identities, each the same; a bias of the
      identities in the choice, not in the weights, steers it (`balance`). 0 leaves it free.
    rescale_inside: of a block, whether its weight scales both of its residual branches where they
      are added, `h' = h + ρ·attention(h)`, `h' + ρ·mlp(h')`, instead of their sum at the end; the
      feed-forward branch then reads what the tokens get.
    shared_keys: whether one layer makes keys and values of all tokens for all modules with
      attention, which tokens choose for their queries and outputs; else a module attends among
      those that chose it.
  """

  attention: int = 4
  mlp: int = 4
  block: int = 0
  identity: int = 2
  top_k: int = 2
  renormalise: bool = False
  skip: float = 0.0
  rescale_inside: bool = False
  shared_keys: bool = False

  def __repr__(self) -> str:
    """What checkpoints know it by: without fields that came later and are at their defaults."""
    values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    if not self.shared_keys:
      del values['shared_keys']
    return f'Modules({", ".join(f"{name}={value!r}" for name, value in values.items())})'

  @property
  def count(self) -> int:
    """M."""
    return self.attention + self.mlp + self.block + self.identity

  def check(self) -> None:
    """Raises `UserError` for numbers below 0, k over M, or a share of skips outside [0, 1)."""
    for name in ('attention', 'mlp', 'block', 'identity'):
      if getattr(self, name) < 0:
        raise UserError(f'{getattr(self, name)} modules of {name}: expected 0 or more')
    check_sizes(modules=self.count)
    routers.check_k(self.top_k, self.count, 'modules')
    if not 0 <= self.skip < 1:
      raise UserError(f'skip {self.skip}: expected a share in [0, 1)')
    if self.rescale_inside and not self.block:
      raise UserError('rescale_inside without block modules: expected at least one')
    if self.shared_keys and not self.attention + self.block:
      raise UserError('shared_keys without attention or block modules: expected at least one')
    if self.skip and not self.identity:
      raise UserError(f'skip {self.skip} without identity modules: expected at least one')
    working = min(self.top_k, self.count - self.identity)
    least, most = 1 - working / self.top_k, min(self.top_k, self.identity) / self.top_k
    if self.skip and not least <= self.skip <= most:
      raise UserError(
        f'skip {self.skip} with {self.identity} identities of {self.count} modules, top '
        f'{self.top_k}: expected a share from {least:g} to {most:g}, which tokens can choose'
      )
