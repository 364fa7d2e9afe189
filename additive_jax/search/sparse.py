"""A model of the loss of structures from some that were evaluated: a sparse Walsh expansion.

In the gates' being off, `u_i = 1 − g_i`, to second order:

    loss(u) = c + Σ_i a_i·u_i + Σ_{i<j} b_ij·u_i·u_j

c is the loss of all-on, a_i what gate i alone costs when it is off, b_ij by how much two cost more
together than apart. It is the Walsh expansion to second order in other coordinates, those in which
structures near all-on have few terms. Most of the b_ij are small: they are fitted by the lasso.
"""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
from jaxtyping import Bool, Float, Int

from additive_jax.errors import UserError

MAIN_SCALE = 10.0  # a main effect is penalised so many times less than a pair


@dataclasses.dataclass(frozen=True, eq=False)
class Fit:
  """A second-order model of the loss.

  >>> fit = Fit(1.0, np.array([0.5, 0.2]), np.array([[0.0, 0.3], [0.3, 0.0]]))
  >>> fit.predict(np.array([[True, True], [False, False]])).tolist()
  [1.0, 2.0]

  Attributes:
    constant: c, the loss of all-on.
    alone: a [n], what each gate costs when it alone is off.
    pairs: b [n, n], symmetric, zero on the diagonal.
  """

  constant: float
  alone: Float[np.ndarray, ' n']
  pairs: Float[np.ndarray, 'n n']

  def predict(self, bits: Bool[np.ndarray, 'S n']) -> Float[np.ndarray, ' S']:
    """Returns the modelled losses of structures."""
    off = (~np.asarray(bits, bool)).astype(float)
    return self.constant + off @ self.alone + 0.5 * ((off @ self.pairs) * off).sum(1)

  @property
  def main(self) -> Float[np.ndarray, ' n']:
    """The main effect of each gate: the mean loss over all 2^n structures with it on, less that
    with it off. Negative where the gate helps."""
    return -(self.alone + 0.5 * self.pairs.sum(1))

  def in_gates(self) -> tuple[Float[np.ndarray, ' n'], Float[np.ndarray, 'n n']]:
    """Returns the same in gates that are on: what each adds, and what pairs add, above the
    diagonal."""
    return -(self.alone + self.pairs.sum(1)), np.triu(self.pairs, 1)

  def strongest(self, count: int) -> Fit:
    """Returns the model with its largest pairs alone."""
    upper = np.abs(np.triu(self.pairs, 1))
    if (upper > 0).sum() <= count:
      return self
    least = np.sort(upper, axis=None)[-count]
    return dataclasses.replace(self, pairs=np.where(np.abs(self.pairs) >= least, self.pairs, 0.0))


def fit(bits: Bool[np.ndarray, 'S n'], losses: Float[np.ndarray, ' S'], order: int = 2) -> Fit:
  """Returns the model of the losses of some structures.

  Where there are as many structures as terms it is least squares, else the lasso with the penalty
  that five-fold cross-validation chooses. A gate that is the same in all structures has no effect.

  Args:
    bits: the structures, different networks.
    losses: of them; what is not finite is left out.
    order: 2, or 1 for no pairs.

  Raises:
    UserError: for no structure with a finite loss.

  >>> bits = np.array([[1, 1], [0, 1], [1, 0], [0, 0]], bool)
  >>> found = fit(bits, np.array([1.0, 1.5, 1.2, 2.0]))
  >>> round(found.constant, 6), found.alone.round(6).tolist(), found.pairs[0, 1].round(6).item()
  (1.0, [0.5, 0.2], 0.3)
  """
  finite = np.isfinite(losses)
  if not finite.any():
    raise UserError('structures without a finite loss: expected at least one')
  off, values = (~bits[finite]).astype(float), np.asarray(losses, float)[finite]
  n = off.shape[1]
  first, second = np.triu_indices(n, 1) if order > 1 else (np.zeros(0, int),) * 2
  columns = np.concatenate([off, off[:, first] * off[:, second]], axis=1)
  varies = columns.min(0) < columns.max(0)
  coefficients = np.zeros(columns.shape[1])
  used = columns[:, varies]
  if used.shape[1]:
    if len(used) > used.shape[1]:
      coefficients[varies] = np.linalg.lstsq(used - used.mean(0), values - values.mean())[0]
    else:
      scale = np.where(np.flatnonzero(varies) < n, MAIN_SCALE, 1.0)
      coefficients[varies] = _lasso(used * scale, values) * scale
  pairs = np.zeros((n, n))
  pairs[first, second] = pairs[second, first] = coefficients[n:]
  constant = float(values.mean() - columns.mean(0) @ coefficients)
  return Fit(constant, coefficients[:n], pairs)


def _lasso(
  columns: Float[np.ndarray, 'S terms'], values: Float[np.ndarray, ' S']
) -> Float[np.ndarray, ' terms']:
  """Returns the coefficients of the lasso; of too few structures to cross-validate those of
  smallest norm."""
  if len(values) < 10:
    return np.linalg.lstsq(columns - columns.mean(0), values - values.mean())[0]
  from sklearn.exceptions import ConvergenceWarning
  from sklearn.linear_model import LassoCV

  scaled = (values - values.mean()) / (values.std() or 1.0)
  largest = np.abs((columns - columns.mean(0)).T @ scaled).max() / len(values)
  penalties = (largest or 1.0) * np.geomspace(1.0, 1e-4, 30)
  with warnings.catch_warnings():
    # The smallest penalties of the path converge slowly; the one that is chosen seldom is of them.
    warnings.simplefilter('ignore', ConvergenceWarning)
    model = LassoCV(alphas=penalties, cv=_folds(len(values)), max_iter=3000).fit(columns, scaled)
  return np.asarray(model.coef_, float) * (values.std() or 1.0)


def _folds(count: int) -> list[tuple[Int[np.ndarray, ' train'], Int[np.ndarray, ' test']]]:
  """Returns five folds: structures stand in the order in which a method came to them, so each fold
  takes every fifth."""
  fold = np.arange(count) % 5
  return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(5)]
