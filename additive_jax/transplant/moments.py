"""The state of an optimizer of a small pool, or of several, made that of the large pool."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict
from jaxtyping import PyTree

from additive_jax.errors import UserError
from additive_jax.files.keys import is_key
from additive_jax.transplant.copies import gradients
from additive_jax.transplant.growth import Transplant

# The fields of Optax that have the shape of the pool: means of gradients, and of squares.
FIRST_MOMENTS = ('mu', 'trace', 'ema', 'acc_grads')
SECOND_MOMENTS = ('nu', 'nu_max', 'sum_of_squares')


def grow_optimizer(grown: Transplant, opt_state: PyTree) -> PyTree:
  """Returns what an optimizer of Optax knows of the small pool, for the large one.

  Gradients change by known factors: where units are read they are the old ones for every copy,
  where units are written a copy has its share. So means of gradients are multiplied by these, means
  of squares by their squares, and numbers such as step counts stay. That is exact but for what
  writes a stream: its copies are tied by the norm as well. There it is exact for equal shares and
  no pads. Unequal shares and pads bring an error: measured, 1–7 % of a mean of gradients for
  streams of 48 and more units, up to 23 % for 4 to 8.

  The optimizer knows nothing of pads and new blocks. Their means of gradients are zero; their means
  of squares are the mean over what is known of the same leaf, or of that leaf in the block before.
  Zeros would make Adam's next steps there over six times too long, as the count says that the means
  have long settled.

  >>> small, large = (aj.models.MLP(n, 4 * n, 8 * n, num_classes=3) for n in (1, 2))
  >>> pools = [model.init(jax.random.key(0), jnp.ones((2, 5))) for model in (small, large)]
  >>> grown = aj.transplant.grow(small, pools[0], large, pools[1], key=jax.random.key(1))
  >>> state = grow_optimizer(grown, optax.trace(0.9).init(pools[0]['params']))
  >>> state.trace['block_01']['in']['kernel'].shape
  (8, 16)

  Args:
    grown: the result of `grow`; or of `shrink`: the optimizer then keeps what it knows of the units
      that stay.
    opt_state: of the old pool. Moments are found by their shape, the pool's, and their name.

  Raises:
    UserError: for a state that holds anything else than such moments and numbers.
  """
  pairs = grown.pairs
  names = {name.split('[')[0]: 0 for name in pairs.shapes[0]}
  pool_structure = jax.tree.structure(unflatten_dict(names, sep='/'))
  is_pool = lambda node: jax.tree.structure(node) == pool_structure

  def moved(path, node):
    name = jax.tree_util.keystr(path)
    if not is_pool(node):
      if np.ndim(node):
        raise UserError(
          f'optimizer state {name} of shape {np.shape(node)}: expected numbers, and moments in the '
          'shape of the pool'
        )
      return node
    if pairs.old.shapes(node) != pairs.shapes[0]:
      raise UserError(f'optimizer state {name}: expected leaves in the shapes of the pool')
    kind = next((getattr(key, 'name', getattr(key, 'key', '')) for key in path[::-1]), '')
    if kind not in (*FIRST_MOMENTS, *SECOND_MOMENTS):
      raise UserError(
        f'optimizer state {name}: expected moments called '
        f'{", ".join((*FIRST_MOMENTS, *SECOND_MOMENTS))}'
      )
    return _moved_moments(grown, node, 1 if kind in FIRST_MOMENTS else 2)

  return jax.tree.map_with_path(moved, opt_state, is_leaf=is_pool)


def _moved_moments(grown: Transplant, moments: PyTree, power: int) -> PyTree:
  pairs, old = grown.pairs, grown.pairs.old.flat(moments)
  new = {}
  for path, name in pairs.origin.items():
    if name is None:
      before = old[pairs.neighbours[path]]
      values, known, mean = np.zeros(pairs.shapes[1][path]), False, before.mean()
    else:
      before = old[name]
      values, known = gradients(before, pairs.new.axes[path], grown.copies, power)
      mean = values.mean(where=known)
    filled = np.where(known, values, mean if power == 2 else 0)
    new[path] = filled.astype(before.dtype)
  return jax.tree.map(jnp.asarray, pairs.new.pool(new))


def average_optimizer(states: Sequence[PyTree]) -> PyTree:
  """Returns what an optimizer knows of J pools, each trained on batches of its own, for their mean,
  trained on the J batches together.

  Means of gradients are averaged. So are means of squares, but for Adam's: these are g² + v, of a
  gradient g and its noise v on a small batch, and on J batches together g² + v/J. With the mean of
  gradients for g that is (1 − 1/J)·mu² + nu/J. Without this the noise of small batches would make
  the first steps on large ones too short, by up to √J. Of counts the largest is taken, of PRNG keys
  the first.

  >>> adam = lambda mu, nu: optax.ScaleByAdamState(count=3, mu=jnp.array(mu), nu=jnp.array(nu))
  >>> mean = average_optimizer([adam(1.0, 4.0), adam(3.0, 8.0)])
  >>> float(mean.mu), float(mean.nu), int(mean.count)
  (2.0, 5.0, 3)
  """
  if len(states) == 1:
    return states[0]

  def mean(*leaves):
    if is_key(leaves[0]):
      return leaves[0]
    if np.issubdtype(np.asarray(leaves[0]).dtype, np.inexact):
      return sum(leaves) / len(leaves)
    return np.max(leaves, axis=0)

  def quieter(node):
    if not isinstance(node, optax.ScaleByAdamState):
      return node
    share = 1 / len(states)
    nu = lambda mu, nu: (1 - share) * jnp.square(mu) + share * nu
    return node._replace(nu=jax.tree.map(nu, node.mu, node.nu))

  is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)
  return jax.tree.map(quieter, jax.tree.map(mean, *states), is_leaf=is_adam)


def restart_schedules(opt_state: PyTree) -> PyTree:
  """Returns an optimizer's state with the steps of its learning-rate schedules at 0: a transplant
  begins a training of its own. What else it counts, such as the steps of Adam's means, stays.

  >>> state = optax.ScaleByScheduleState(count=jnp.array(500))
  >>> int(restart_schedules(state).count)
  0
  """
  is_schedule = lambda node: isinstance(node, optax.ScaleByScheduleState)
  restart = lambda node: (
    node._replace(count=jnp.zeros_like(node.count)) if is_schedule(node) else node
  )
  return jax.tree.map(restart, opt_state, is_leaf=is_schedule)
