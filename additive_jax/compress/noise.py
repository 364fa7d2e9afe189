"""Noise inside a network, without a change to the network: what its linear maps read or give is
made random while it runs.

A kernel of `nn.Dense` or `feed_forward.Linear` is replaced, where the network asks for it, by an
object that is multiplied like the array it stands for: `x @ kernel`, of all of it, of rows and
columns, or reshaped. Noise is drawn for each example from a key of its own, so it does not depend
on how a batch is spread over devices.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from additive_jax.models.additive import (
  Additive,
  Inputs,
  embed,
  initial_shapes,
  readout,
  sites_of,
  update,
)
from additive_jax.models.feed_forward import Linear

TINY = 1e-8  # added to variances, whose root would otherwise have no finite slope at 0
KERNEL = 'kernel'
Change = Callable[[Array], Array]
MOST_AXES = 2  # that a matmul sums over, of a head and its units; a convolution has more


@dataclasses.dataclass(frozen=True)
class Draw:
  """Standard normal noise for the examples of a batch; every call draws anew.

  Attributes:
    keys: one for each example.
    numbers: of the calls, which are folded into the keys.

  >>> draw = Draw(jax.random.split(jax.random.key(0), 3))
  >>> draw((3, 2)).shape, bool((draw((3, 2)) == draw((3, 2))).any())
  ((3, 2), False)
  """

  keys: Key[Array, 'B']
  numbers: itertools.count[int] = dataclasses.field(default_factory=itertools.count)

  def __call__(self, shape: tuple[int, ...]) -> Float[Array, 'B ...']:
    """Returns noise of a shape [B, ...]."""
    number = next(self.numbers)
    of_example = lambda key: jax.random.normal(jax.random.fold_in(key, number), shape[1:])
    return jax.vmap(of_example)(self.keys)


class StandIn(abc.ABC):
  """An object in the place of a kernel, which a network cuts, reshapes and multiplies like it."""

  @property
  @abc.abstractmethod
  def array(self) -> Float[Array | np.ndarray, '...']:
    """The array it stands for."""

  @abc.abstractmethod
  def changed(self, change: Change) -> Self:
    """Returns the object in the place of that array cut or reshaped."""

  @abc.abstractmethod
  def __rmatmul__(self, x: Any) -> Float[Array, 'B ... outputs']:
    """Returns inputs [B, ..., inputs] times it."""

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the array it stands for."""
    return self.array.shape

  @property
  def dtype(self) -> np.dtype[Any]:
    """The dtype of the array it stands for."""
    return self.array.dtype

  def astype(self, dtype: Any) -> Self:
    """Returns the kernel in another dtype."""
    return self.changed(lambda array: array.astype(dtype))

  def reshape(self, *shape: int) -> Self:
    """Returns the kernel in another shape."""
    return self.changed(lambda array: array.reshape(*shape))

  def __getitem__(self, index: Any) -> Self:
    return self.changed(lambda array: array[index])


@dataclasses.dataclass(frozen=True, eq=False)
class NoisyKernel(StandIn):
  """A kernel whose every weight is normal and independent: `x @ kernel` has the mean `x·W` and the
  variance `x²·σ²`, and is drawn as such, each example and token for itself (local
  reparameterisation). Source: Kingma et al. 2015 (arXiv:1506.02557), section 2.2.

  Attributes:
    mean: W [inputs, outputs], or of more axes until it is reshaped.
    variance: σ², of the same shape.
    draw: of noise.
  """

  mean: Float[Array, '...']
  variance: Float[Array, '...']
  draw: Draw

  @property
  def array(self) -> Float[Array | np.ndarray, '...']:
    """The mean."""
    return self.mean

  def changed(self, change: Change) -> NoisyKernel:
    """Returns the kernel with mean and variance changed alike."""
    return NoisyKernel(change(self.mean), change(self.variance), self.draw)

  def __rmatmul__(self, x: Float[Array, 'B ... inputs']) -> Float[Array, 'B ... outputs']:
    centre = x @ self.mean
    deviation = jnp.sqrt(jnp.square(x) @ self.variance + TINY)
    return centre + deviation * self.draw(centre.shape).astype(centre.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class ScaledKernel(StandIn):
  """A kernel whose input is multiplied by a number for each example and unit.

  Attributes:
    kernel: W [inputs, outputs], or of more axes until it is reshaped.
    scale: for all tokens of an example.
  """

  kernel: Float[Array, '...']
  scale: Float[Array, 'B inputs']

  @property
  def array(self) -> Float[Array | np.ndarray, '...']:
    """The kernel."""
    return self.kernel

  def changed(self, change: Change) -> ScaledKernel:
    """Returns the kernel changed, with the same scale of its inputs."""
    return ScaledKernel(change(self.kernel), self.scale)

  def astype(self, dtype: Any) -> ScaledKernel:
    """Returns kernel and scale in another dtype."""
    return ScaledKernel(self.kernel.astype(dtype), self.scale.astype(dtype))

  def __getitem__(self, index) -> ScaledKernel:
    rows = index[0] if isinstance(index, tuple) else index
    return ScaledKernel(self.kernel[index], self.scale[:, rows])

  def __rmatmul__(self, x: Float[Array, 'B ... inputs']) -> Float[Array, 'B ... outputs']:
    between = (1,) * (x.ndim - 2)
    return (x * self.scale.reshape(len(x), *between, -1)) @ self.kernel


def with_kernels(
  model: Additive,
  params: PyTree,
  x: Inputs,
  replaced: Mapping[str, Callable[[Array], Any]],
) -> Float[Array, 'B ...']:
  """Returns the logits of a model, all gates on, with some kernels replaced while it runs.

  Args:
    model: whose modules are looked up by name.
    params: its pool.
    x: inputs.
    replaced: by the name of a module (its path with / between), from its kernel to what is
      multiplied in its place.
  """

  def interceptor(call, args, kwargs, context):
    module = context.module
    name = '/'.join(module.path) if _is_map(context) else ''
    if name not in replaced:
      return call(*args, **kwargs)
    if isinstance(module, Linear):
      layer = call(*args, **kwargs)
      return layer._replace(kernel=replaced[name](layer.kernel))
    out = args[0] @ replaced[name](module.get_variable('params', KERNEL))
    return out + module.get_variable('params', 'bias') if module.use_bias else out

  variables = {'params': params}
  with nn.intercept_methods(interceptor):
    h = embed(model, variables, x)
    for i in range(len(sites_of(model))):
      h = update(model, variables, i, h)
    return readout(model, variables, h)


def linear_maps(model: Additive, x: Inputs) -> dict[str, tuple[int, ...]]:
  """Returns the modules whose kernels can be replaced, and these kernels' shapes, in the order in
  which the network, all gates on, runs them on inputs of the shape of `x`. Computes nothing.

  >>> linear_maps(aj.models.MLP(1, 4, 8, num_classes=3), np.ones((1, 5), np.float32))
  {'embed': (5, 4), 'block_00/in': (4, 8), 'block_00/out': (8, 4), 'readout/out': (4, 3)}
  """
  shapes = {}

  def interceptor(call, args, kwargs, context):
    out, module = call(*args, **kwargs), context.module
    if _is_map(context):
      shapes['/'.join(module.path)] = tuple(module.get_variable('params', KERNEL).shape)
    return out

  variables = initial_shapes(model, x)
  with nn.intercept_methods(interceptor):
    jax.eval_shape(model.apply, variables, x)
  return shapes


def _is_map(context) -> bool:
  """Returns whether the call is one of a linear map by a matrix."""
  if context.method_name != '__call__':
    return False
  if isinstance(context.module, Linear):
    return np.size(context.module.in_axis) <= MOST_AXES
  return isinstance(context.module, nn.Dense)
