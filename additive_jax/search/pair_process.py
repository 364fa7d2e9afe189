"""A Gaussian process over structures: what a structure that was not evaluated may lose, and how
unsure that is.

In the gates' being off, `u_i = 1 − g_i`, the loss is what each gate costs when it alone is off, and
what pairs cost together beyond that:

    loss(u) = c + Σ_i a_i·u_i + Σ_{i<j} b_ij·u_i·u_j,    b_ij ~ N(√(w_i·w_j)·m, s²·w_i·w_j·ρ_ij)

c and the a_i are known from one evaluation each. w_i is the size of a_i: gates that matter more
have larger interactions. ρ_ij falls from 1 with the distance of their layers: near ones interact
more. m ~ N(0, s²) is common to all pairs, since a loss grows faster the more is off; s² is that of
largest likelihood. This is the second-order model of BOCS (Baptista and Poloczek 2018,
arXiv:1806.08838), with this prior in place of a sparse one, so that a posterior is one Cholesky
factor of the number of evaluations.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Float
from scipy import linalg

NOISE = 1e-3  # variance of what no pair explains, as a share of Σ a_i squared
LEAST = 0.3  # the smallest size of a gate, in medians of all
ALL = 0.1  # ρ of gates that are far apart
REACH = 4  # layers over which ρ falls to that
BLOCK = 64  # rows of a covariance that are computed together
WINDOWS = 32  # the most of them, about; of more layers each is longer


@dataclasses.dataclass(frozen=True, eq=False)
class Prior:
  """What is taken for granted of the loss.

  >>> prior = Prior(1.0, np.array([0.5, 0.2, 0.1]), np.array([0.0, 0.0, 1.0]))
  >>> bits = np.array([[0, 1, 1], [1, 0, 1], [0, 0, 1]], bool)
  >>> posterior = prior.given(bits, np.array([1.5, 1.2, 1.9]))
  >>> mean, deviation = posterior.predict(np.array([[0, 0, 1], [0, 1, 0]], bool))
  >>> mean.round(1)  # the second has not been seen: 1.6 and what its pair may add
  array([1.9, 1.7])
  >>> bool(deviation[0] < deviation[1])
  True

  Attributes:
    constant: c, the loss of all-on.
    alone: a [n].
    places: the layer of each gate.
  """

  constant: float
  alone: Float[np.ndarray, ' n']
  places: Float[np.ndarray, ' n']

  @functools.cached_property
  def sizes(self) -> Float[np.ndarray, ' n']:
    """w, the size of each gate."""
    size = np.abs(self.alone)
    return np.maximum(size, max(LEAST * float(np.median(size)), 1e-12))

  @functools.cached_property
  def components(self) -> Float[np.ndarray, 'n components']:
    """Returns columns φ with w_i·w_j·ρ_ij = Σ_k φ_ik·φ_jk and ρ_ii = 1.

    One is of all gates, each of the others of those within a window over the layers: so no ρ is
    negative, and with REACH layers a window it falls in a line, to what is of all.
    """
    num_places = int(self.places.max()) + 1
    step = -(-num_places // WINDOWS)
    width = step * max(REACH // step, 2)
    starts = np.arange(step - width, num_places, step)
    apart = self.places[:, None] - starts[None]
    windows = ((apart >= 0) & (apart < width)) * np.sqrt((1 - ALL) * step / width)
    all_gates = np.full((len(self.places), 1), np.sqrt(ALL))
    return self.sizes[:, None] * np.concatenate([all_gates, windows], axis=1)

  def growth(self, off: Float[np.ndarray, 'S n']) -> Float[np.ndarray, ' S']:
    """Returns Σ_{i<j} √(w_i·w_j)·u_i·u_j, by what the loss grows when m is 1."""
    root = off * np.sqrt(self.sizes)
    return 0.5 * (root.sum(1) ** 2 - (root**2).sum(1))

  def covariance(
    self, first: Float[np.ndarray, 'S n'], second: Float[np.ndarray, 'M n']
  ) -> Float[np.ndarray, 'S M']:
    """Returns the covariance of what pairs add, of structures with those gates off. With x the
    gates that are off in both it is Σ_{i<j} w_i·w_j·ρ_ij·x_i·x_j, and the growth of both."""
    out = np.empty((len(first), len(second)))
    growth, columns = self.growth(second), self.components
    own = (columns**2).sum(1)
    windows = [(np.flatnonzero(column), column[column > 0]) for column in columns.T]
    parts = [np.ascontiguousarray(second[:, gates].T) for gates, _ in windows]
    for start in range(0, len(first), BLOCK):  # so many rows at once stay in a core's cache
      rows, block = first[start : start + BLOCK], out[start : start + BLOCK]
      np.matmul(rows * -own, second.T, out=block)
      product = np.empty_like(block)
      for (gates, column), part in zip(windows, parts):  # few gates, in all windows but one
        np.matmul(rows[:, gates] * column, part, out=product)
        np.square(product, out=product)
        block += product
      block *= 0.5
      block += np.multiply.outer(self.growth(rows), growth, out=product)
    return out

  def variance(self, off: Float[np.ndarray, 'S n']) -> Float[np.ndarray, ' S']:
    """Returns the same of each structure with itself."""
    columns = self.components
    own = np.square(off @ columns).sum(1) - off @ (columns**2).sum(1)
    return 0.5 * own + np.square(self.growth(off))

  def given(self, bits: Bool[np.ndarray, 'S n'], losses: Float[np.ndarray, ' S']) -> Posterior:
    """Returns what is known after some evaluations, all finite."""
    off = (~bits).astype(float)
    rest = losses - self.constant - off @ self.alone
    matrix = self.covariance(off, off)
    noise = NOISE * np.square(off @ self.sizes)
    jitter = 1e-9 * max(float(np.trace(matrix)) / len(off), 1e-12)
    factor = np.linalg.cholesky(matrix + np.diag(noise + jitter))
    weights = linalg.cho_solve((factor, True), rest)
    likely = max(float(rest @ weights) / len(off), 0.0)
    return Posterior(self, off, factor, weights, likely)


@dataclasses.dataclass(frozen=True, eq=False)
class Posterior:
  """A process of which some values are known, see `Prior.given`.

  Attributes:
    prior: of it.
    off: the structures that are known, 1 for a gate that is off.
    factor: of their covariance, by Cholesky.
    weights: their covariance's inverse times what is left of their losses.
    likely: s², the scale of largest likelihood.
  """

  prior: Prior
  off: Float[np.ndarray, 'S n']
  factor: Float[np.ndarray, 'S S']
  weights: Float[np.ndarray, ' S']
  likely: float

  def predict(
    self, bits: Bool[np.ndarray, 'M n']
  ) -> tuple[Float[np.ndarray, ' M'], Float[np.ndarray, ' M']]:
    """Returns the mean and the standard deviation of the losses of structures."""
    off, prior = (~bits).astype(float), self.prior
    known = prior.covariance(off, self.off)
    mean = prior.constant + off @ prior.alone + known @ self.weights
    told = np.square(linalg.solve_triangular(self.factor, known.T, lower=True)).sum(0)
    left = np.maximum(prior.variance(off) - told, 0.0)
    return mean, np.sqrt(left * self.likely)
