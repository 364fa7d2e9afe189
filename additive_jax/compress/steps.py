"""A plain network as a list of steps: no gates, no structures, and sizes that may differ from one
step to the next. It is what `cut` leaves of a network with gates.

Parameters are named and shaped as in the network with gates; a step does in fixed arithmetic what a
site does with its gates in one position. `KINDS` has all steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, PyTree

from additive_jax import gates as gates_
from additive_jax.batches import is_array
from additive_jax.compress.branches import Attention, ConvBlock, FeedForward, Shift, ends
from additive_jax.errors import UserError
from additive_jax.models.additive import Inputs
from additive_jax.models.conv import Conv, as_images
from additive_jax.models.convnet import Down, PooledHead
from additive_jax.models.feed_forward import linear_pair
from additive_jax.models.mlp import Head
from additive_jax.models.side import side_of
from additive_jax.models.token_inputs import token_inputs
from additive_jax.models.transformer import patches

ACTIVATIONS = {'none': lambda x: x, 'relu': nn.relu}


@dataclasses.dataclass(frozen=True)
class Step:
  """One step: its kind, the name of its parameters, None if it has none, and its fields."""

  kind: str
  name: str | None
  fields: tuple[tuple[str, Any], ...]

  def module(self) -> nn.Module:
    """Returns the step as a Flax module."""
    return KINDS[self.kind](**dict(self.fields), name=self.name)


def step(kind: str, name: str | None = None, **fields: Any) -> Step:
  """Returns a step of one of `KINDS`."""
  return Step(kind, name, tuple(sorted(fields.items())))


class Steps(nn.Module):
  """`h ← step(h)` for each step in order, from inputs [B, ...] to logits [B, ..., C]. Tokens may
  come with a mask or segments, see `models.token_inputs`.

  >>> network = Steps((step('flat'), step('dense', 'out', features=3)))
  >>> network.init_with_output(jax.random.key(0), jnp.ones((2, 4, 4)))[0].shape
  (2, 3)
  """

  steps: tuple[Step, ...]

  @nn.compact
  def __call__(self, x: Inputs) -> Float[Array | np.ndarray, 'B ...']:
    side = None
    if not is_array(x):
      x, side, _ = token_inputs(x)
    for step in self.steps:
      module = step.module()
      x = module(x, **side_of(module, side))
    return x

  @property
  def config(self) -> list[dict[str, Any]]:
    """The steps as dicts of JSON values: `kind`, `name` and the fields of each."""
    return [
      {'kind': step.kind, 'name': step.name, **{key: _listed(v) for key, v in step.fields}}
      for step in self.steps
    ]


def make_steps(config: Sequence[Mapping[str, Any]]) -> Steps:
  """Returns the network of `Steps.config`, as it is or after a way through JSON.

  Raises:
    UserError: for an unknown kind, or fields that the kind does not have.
  """
  steps = []
  for entry in config:
    try:
      steps.append(step(**{key: tupled(value) for key, value in entry.items()}))
      if 'parent' in entry:
        raise TypeError('unknown field parent')
      steps[-1].module()
    except (KeyError, TypeError, AttributeError, ValueError) as error:
      raise UserError(
        f'step {entry} ({error}): expected a kind out of {", ".join(KINDS)} and its fields'
      ) from error
  return Steps(tuple(steps))


class Flat(nn.Module):
  """Inputs [B, ...] as rows float32 [B, n], or of these the numbers `inputs`, in that order."""

  inputs: tuple[int, ...] | None = None

  @nn.compact
  def __call__(self, x: Num[Array | np.ndarray, 'B ...']) -> Float[Array | np.ndarray, 'B n']:
    x = x.reshape(x.shape[0], -1).astype(jnp.float32)
    return x if self.inputs is None else x[:, jnp.array(self.inputs)]


class Dense(nn.Module):
  """`act(x W + b)`, from [..., n] to [..., features]; `activation` is 'none' or 'relu'."""

  features: int
  activation: str = 'none'

  @nn.compact
  def __call__(self, x: Float[Array | np.ndarray, '*B n']) -> Float[Array | np.ndarray, '*B out']:
    shape = (x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
    return ACTIVATIONS[self.activation](x @ kernel + bias)


class ChunkedPair(nn.Module):
  """Two dense layers with relu between them, of which some chunks are apart, see
  `gates.sub_activation`; the chunks may have any sizes.

  Attributes:
    layers: the names of both.
    hidden: units between them.
    joins: whether chunks k and k + 1 are joined, bools [m − 1].
    inputs, outputs: the sizes of the m chunks.
    activation: of the output, 'none' or 'relu'.
  """

  layers: tuple[str, str]
  hidden: int
  joins: tuple[bool, ...]
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  activation: str = 'none'

  @nn.compact
  def __call__(self, x: Float[Array | np.ndarray, 'B D']) -> Float[Array | np.ndarray, 'B E']:
    shapes = (sum(self.inputs), self.hidden), (self.hidden, sum(self.outputs))
    first, second, _ = linear_pair(*shapes, names=self.layers)
    reads, writes = ends(self.inputs), ends(self.outputs)

    def partial(lo, hi):
      part = slice(reads[lo], reads[hi])
      return x[..., part] @ first.kernel[part] + first.bias * ((hi - lo) / len(self.inputs))

    def outputs(h, lo, hi):
      return h @ second.kernel[:, writes[lo] : writes[hi]]

    y = gates_.compose(self.joins, partial, nn.relu, outputs) + jnp.asarray(second.bias)
    return ACTIVATIONS[self.activation](y)


class Patches(nn.Module):
  """Images [B, height, width(, channels)] as square patches [B, T, size²·channels]."""

  size: int

  @nn.compact
  def __call__(
    self, x: Num[Array | np.ndarray, 'B height width *channels']
  ) -> Float[Array | np.ndarray, 'B T D']:
    return patches(jnp.asarray(x).astype(jnp.float32), self.size)


class Embed(nn.Module):
  """Tokens int [B, T] as [B, T, features]."""

  num_tokens: int
  features: int

  @nn.compact
  def __call__(self, x: Num[Array | np.ndarray, '...']) -> Float[Array | np.ndarray, 'B T D']:
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer):
      raise UserError(
        f'inputs of dtype {x.dtype} and shape {x.shape}: expected tokens, integers [B, T]'
      )
    init = nn.initializers.normal(self.features**-0.5)
    shape = (self.num_tokens, self.features)
    return jnp.take(self.param('embedding', init, shape, jnp.float32), x, axis=0)


class Positions(nn.Module):
  """Adds to token t of [B, T, D] the t-th of `max_tokens` learned vectors, or of a side with
  positions that at its position."""

  max_tokens: int

  @nn.compact
  def __call__(
    self, h: Float[Array | np.ndarray, 'B T D'], side: PyTree | None = None
  ) -> Float[Array | np.ndarray, 'B T D']:
    init = nn.initializers.normal(0.02)
    table = self.param('embedding', init, (self.max_tokens, h.shape[-1]), jnp.float32)
    if h.shape[1] > self.max_tokens:
      raise UserError(f'{h.shape[1]} tokens: expected at most {self.max_tokens}, max_tokens')
    return h + (table[: h.shape[1]] if side is None else table[side['positions']])


class Split(nn.Module):
  """The stream [B, ..., D] as `lanes` copies, [B, lanes, ..., D]."""

  lanes: int

  @nn.compact
  def __call__(
    self, h: Float[Array | np.ndarray, 'B *rest D']
  ) -> Float[Array | np.ndarray, 'B P *rest D']:
    return jnp.broadcast_to(h[:, None], (len(h), self.lanes, *h.shape[1:]))


class Mean(nn.Module):
  """The mean over lanes or over tokens, axis 1."""

  @nn.compact
  def __call__(
    self, h: Float[Array | np.ndarray, 'B _ *rest']
  ) -> Float[Array | np.ndarray, 'B *rest']:
    return h.mean(1)


class Images(nn.Module):
  """Inputs [B, height, width(, channels)] as float32 images with channels, of at least `least`
  pixels a side."""

  least: int = 1

  @nn.compact
  def __call__(
    self, x: Num[Array | np.ndarray, 'B ...']
  ) -> Float[Array | np.ndarray, 'B height width channels']:
    return as_images(x, least=self.least)


KINDS = {
  'flat': Flat,
  'dense': Dense,
  'chunked_pair': ChunkedPair,
  'patches': Patches,
  'embed': Embed,
  'positions': Positions,
  'split': Split,
  'mean': Mean,
  'attention': Attention,
  'feed_forward': FeedForward,
  'shift': Shift,
  'images': Images,
  'conv': Conv,
  'conv_block': ConvBlock,
  'down': Down,
  'head': Head,
  'pooled_head': PooledHead,
}


def _listed(value):
  return [_listed(item) for item in value] if isinstance(value, tuple) else value


def tupled(value: Any) -> Any:
  """Returns a JSON value with tuples in place of lists."""
  return tuple(tupled(item) for item in value) if isinstance(value, list | tuple) else value
