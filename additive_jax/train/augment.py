"""Examples changed at random on the devices, in each step of a training anew.

An augmentation is a function of a key, inputs x [B, ...] and targets y [B, ...] to such a pair. It
sees the whole batch of a slot, however many devices share it, and its key is folded from the seed,
the step and the slot: so what is drawn is the same on any devices, and after a restart. It is part
of the compiled step, and of training alone.

One of your own, which scales each example by a factor of its own:

>>> import optax
>>> def scaled(key, x, y):
...   return x * jax.random.uniform(key, (len(x), 1), minval=0.8, maxval=1.2), y
>>> model = aj.models.MLP(num_blocks=1, width=4, hidden=4, num_classes=2)
>>> from additive_jax.train.recipe import Recipe
>>> recipe = Recipe(model, 'classification', optax.adam(1e-3), augment=scaled)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree

from additive_jax.batches import described, is_array
from additive_jax.data import Weighted
from additive_jax.errors import UserError

NAMES = ('crop', 'flip', 'mixup')
KEY = 0x61756721  # folded into the key of a slot, for its augmentation
Augment = Callable[[Any, Any, Any], tuple[Any, Any]]


def of_examples(key: PRNGKeyArray, count: int) -> Key[Array, 'B']:
  """Returns a key for each example of a batch, by its place.

  >>> of_examples(jax.random.key(0), 3).shape
  (3,)
  """
  return jax.vmap(lambda place: jax.random.fold_in(key, place))(jnp.arange(count))


@dataclasses.dataclass(frozen=True)
class Crop:
  """Moves each image by up to `pixels` in height and width; what comes in from outside is 0.

  Attributes:
    pixels: at most; 0 is an eighth of the height, at least 1.

  >>> x, y = Crop(1)(jax.random.key(0), jnp.ones((2, 3, 3, 1)), jnp.arange(2))
  >>> x.shape
  (2, 3, 3, 1)

  Source: as for CIFAR in He et al. 2015 (arXiv:1512.03385), section 4.2.
  """

  pixels: int = 0

  def __call__(self, key: PRNGKeyArray, x: PyTree, y: PyTree) -> tuple[PyTree, PyTree]:
    """Returns the batch with images moved."""
    check_images('crop', x)
    pixels = self.pixels or max(1, x.shape[1] // 8)
    padded = jnp.pad(x, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))

    def one(key, image):
      top, left = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
      return jax.lax.dynamic_slice(image, (top, left, 0), x.shape[1:])

    return jax.vmap(one)(of_examples(key, len(x)), padded), y


@dataclasses.dataclass(frozen=True)
class Flip:
  """Mirrors each image left to right with probability `rate`.

  >>> Flip(1.0)(jax.random.key(0), jnp.arange(3).reshape(1, 1, 3, 1), jnp.zeros(1))[0].tolist()
  [[[[2], [1], [0]]]]
  """

  rate: float = 0.5

  def __post_init__(self):
    if not 0 <= self.rate <= 1:
      raise UserError(f'flip_rate {self.rate}: expected a share in [0, 1]')

  def __call__(self, key: PRNGKeyArray, x: PyTree, y: PyTree) -> tuple[PyTree, PyTree]:
    """Returns the batch with some images mirrored."""
    check_images('flip', x)
    draw = jax.vmap(lambda key: jax.random.bernoulli(key, self.rate))
    mirrored = draw(of_examples(key, len(x)))
    return jnp.where(mirrored[:, None, None, None], x[:, :, ::-1], x), y


@dataclasses.dataclass(frozen=True)
class Mixup:
  """Mixes each example with another of its batch: λ·x + (1 − λ)·x', and targets likewise, λ drawn
  from Beta(alpha, alpha). Labels become shares of classes [B, C], numbers are mixed as they are.

  Examples with weights count λ·w + (1 − λ)·w', and their targets are mixed in these proportions.

  Attributes:
    num_classes: C, of labels; 0 for targets that are mixed as numbers, also labels that are 0 or 1.
    alpha: above 0; the smaller, the nearer λ is to 0 or 1.

  >>> x, y = Mixup(num_classes=2)(jax.random.key(0), jnp.eye(3), jnp.array([0, 1, 1]))
  >>> y.shape, y.sum(1).tolist()
  ((3, 2), [1.0, 1.0, 1.0])

  Source: Zhang et al. 2017 (arXiv:1710.09412).
  """

  num_classes: int
  alpha: float = 0.2

  def __post_init__(self):
    if not self.alpha > 0:
      raise UserError(f'mixup_alpha {self.alpha}: expected a positive number')

  def __call__(self, key: PRNGKeyArray, x: PyTree, y: PyTree) -> tuple[PyTree, PyTree]:
    """Returns the batch, mixed."""
    for leaf in jax.tree.leaves(x):
      if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise UserError(f'mixup of inputs of type {leaf.dtype}: expected floats')
    count = len(jax.tree.leaves(x)[0])
    partners = jax.random.permutation(jax.random.fold_in(key, count), count)
    draw = jax.vmap(lambda key: jax.random.beta(key, self.alpha, self.alpha))
    share = draw(of_examples(key, count))
    weight = jnp.ones(count)
    if isinstance(y, Weighted):
      y, weight = y.y, y.weight
      if weight.ndim > 1:
        raise UserError('mixup with a weight for each token: expected one for each example')
      total = share * weight + (1 - share) * weight[partners]
      shares = (share * weight) / jnp.where(total > 0, total, 1)
      return _mixed(x, share, partners), Weighted(self._targets(y, shares, partners), total)
    return _mixed(x, share, partners), self._targets(y, share, partners)

  def _targets(self, y, share, partners):
    if not is_array(y):
      raise UserError(f'mixup of targets {described(y, "y")}: expected one array')
    if not jnp.issubdtype(y.dtype, jnp.floating):
      if self.num_classes and y.ndim > 1:
        raise UserError(f'mixup of labels {described(y, "y")}: expected one for each example')
      y = jax.nn.one_hot(y, self.num_classes) if self.num_classes else y.astype(jnp.float32)
    return _mixed(y, share, partners)


def _mixed(tree: PyTree, share: Float[Array, 'B'], partners: Any) -> PyTree:
  def mixed(leaf):
    by_example = share.reshape(-1, *[1] * (leaf.ndim - 1)).astype(leaf.dtype)
    return by_example * leaf + (1 - by_example) * leaf[partners]

  return jax.tree.map(mixed, tree)


@dataclasses.dataclass(frozen=True)
class InTurn:
  """Several augmentations one after the other, each with a key of its own.

  >>> both = InTurn((Crop(1), Flip()))
  >>> both(jax.random.key(0), jnp.ones((2, 3, 3, 1)), jnp.arange(2))[1].tolist()
  [0, 1]
  """

  parts: tuple[Augment, ...]

  def __call__(self, key: PRNGKeyArray, x: PyTree, y: PyTree) -> tuple[PyTree, PyTree]:
    """Returns what the last gives."""
    for number, part in enumerate(self.parts):
      x, y = part(jax.random.fold_in(key, number), x, y)
    return x, y


def check_images(name: str, x: PyTree) -> None:
  """Raises `UserError` for inputs that are no images [B, height, width, channels].

  >>> check_images('flip', jnp.ones((2, 3)))
  Traceback (most recent call last):
  additive_jax.errors.UserError: flip of x [3] float32: expected images [height, width, channels]
  """
  if not is_array(x) or len(x.shape) != 4:
    raise UserError(f'{name} of {described(x, "x")}: expected images [height, width, channels]')


def make_augment(
  names: Sequence[str],
  num_classes: int,
  *,
  crop_pixels: int = 0,
  flip_rate: float = 0.5,
  mixup_alpha: float = 0.2,
) -> Augment | None:
  """Returns the augmentations of these names in turn; None for none.

  >>> make_augment(['flip'], 10)
  Flip(rate=0.5)

  Args:
    names: some of `NAMES`.
    num_classes: of the labels; 0 for other targets.
    crop_pixels, flip_rate, mixup_alpha: see `Crop`, `Flip` and `Mixup`.

  Raises:
    UserError: for another name.
  """
  parts: list[Augment] = []
  for name in names:
    match name:
      case 'crop':
        parts.append(Crop(crop_pixels))
      case 'flip':
        parts.append(Flip(flip_rate))
      case 'mixup':
        parts.append(Mixup(num_classes, mixup_alpha))
      case _:
        raise UserError(f'augment {name!r}: expected some of {", ".join(NAMES)}')
  if len(parts) < 2:
    return parts[0] if parts else None
  return InTurn(tuple(parts))


def augmented(
  augment: Augment | None, keys: Key[Array, 'slots'], x: PyTree, y: PyTree
) -> tuple[PyTree, PyTree]:
  """Returns the whole batches of some slots, augmented.

  >>> keys = jax.random.split(jax.random.key(0), 2)
  >>> x, y = augmented(Flip(1.0), keys, jnp.ones((2, 5, 3, 3, 1)), jnp.zeros((2, 5), int))
  >>> x.shape
  (2, 5, 3, 3, 1)

  Args:
    augment: None leaves them as they are.
    keys: of the slots.
    x, y: [slots, B, ...].
  """
  if augment is None:
    return x, y
  own = jax.vmap(lambda key: jax.random.fold_in(key, KEY))(keys)
  return jax.vmap(augment)(own, x, y)


def augmented_shapes(augment: Augment | None, x: PyTree, y: PyTree, size: int) -> tuple[Any, Any]:
  """Returns the shapes of a batch of `size` examples such as x and y, augmented.

  >>> augmented_shapes(lambda key, x, y: x[:3], jnp.ones((1, 4)), jnp.ones(1), size=5)
  Traceback (most recent call last):
  additive_jax.errors.UserError: augment <lambda> gives no pair (x, y): expected a batch of 5
  examples, inputs as they were

  Raises:
    UserError: for an augmentation that gives no pair, or inputs of another form.
  """
  shape = lambda leaf: jax.ShapeDtypeStruct(
    (size, *leaf.shape[1:]), jax.dtypes.canonicalize_dtype(leaf.dtype)
  )
  x, y = jax.tree.map(shape, (x, y))
  if augment is None:
    return x, y
  result = jax.eval_shape(augment, jax.random.key(0), x, y)
  name = getattr(augment, '__name__', type(augment).__name__)
  expected = f'expected a batch of {size} examples, inputs as they were'
  if not isinstance(result, tuple | list) or len(result) != 2:
    raise UserError(f'augment {name} gives no pair (x, y): {expected}')
  form = lambda tree: (
    jax.tree.structure(tree),
    [(a.shape, a.dtype) for a in jax.tree.leaves(tree)],
  )
  if form(result[0]) != form(x):
    told = described(result[0], 'x')
    raise UserError(f'augment {name} gives {told} of {described(x, "x")}: {expected}')
  if any(leaf.shape[:1] != (size,) for leaf in jax.tree.leaves(result[1])):
    shapes = ', '.join(str(list(leaf.shape)) for leaf in jax.tree.leaves(result[1]))
    raise UserError(f'augment {name} gives targets {shapes}: {expected}')
  return result[0], result[1]
