"""A convolution whose gradients are fast wherever they run, and `nn.Conv` written with it.

XLA on CPU has a fast convolution for one layout: channels last, kernels [I, J, D, E]. It brings
others into it in the outermost computation of a program alone. In the body of a loop or of a
conditional, where all training happens, they run 16 to 90 times slower (jax-ml/jax#12868). JAX's
gradients of a convolution have other layouts, so they are written out here in the fast one:

  forward          x [B, X, D]  *  k [I, D, E]        -> y [B, X', E]
  gradient of x    g [B, X', E] *  k mirrored [I, E, D]   -> [B, X, D]
  gradient of k    x as [D, X, B]  *  g as [X', B, E]     -> [D, I, E]

with any number of spatial axes. Other devices have no such trouble, and keep JAX's own gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MOST_GROUPS = 16  # up to which gradients are one convolution for each group
CLASSES = (nn.Conv, nn.ConvTranspose)


class Form(NamedTuple):
  """All that a convolution takes beside its operands; fields are named as JAX names them."""

  window_strides: tuple[int, ...]
  padding: tuple[tuple[int, int], ...]
  lhs_dilation: tuple[int, ...]
  rhs_dilation: tuple[int, ...]
  feature_group_count: int
  precision: Any
  preferred_element_type: Any


def conv_general_dilated(
  lhs: Float[Array, '...'],
  rhs: Float[Array, '...'],
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  dimension_numbers: Any = None,
  feature_group_count: int = 1,
  batch_group_count: int = 1,
  precision: Any = None,
  preferred_element_type: Any = None,
) -> Float[Array, '...']:
  """Returns what `jax.lax.conv_general_dilated` does, with gradients that are fast in the bodies of
  loops and conditionals on CPU too.

  Linen's convolutions in the parts of a network take it by themselves. A module that calls JAX's
  function, or an `nnx.Conv(conv_general_dilated=...)`, is given this one.

  Args:
    lhs, rhs: images and kernel, in the layouts that `dimension_numbers` tell; like the rest as in
      `jax.lax.conv_general_dilated`.

  >>> images, kernel = jnp.ones((1, 2, 3, 1)), jnp.ones((3, 3, 1, 1))
  >>> layouts = ('NHWC', 'HWIO', 'NHWC')
  >>> y = conv_general_dilated(images, kernel, (1, 1), 'SAME', dimension_numbers=layouts)
  >>> y[0, :, :, 0].tolist()
  [[4.0, 6.0, 4.0], [4.0, 6.0, 4.0]]
  """
  names = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
  sides = len(names.lhs_spec) - 2
  is_refused = isinstance(padding, str) and any(d != 1 for d in lhs_dilation or ())  # by JAX
  if batch_group_count != 1 or is_refused or jax.default_backend() != 'cpu' or not 1 <= sides <= 3:
    return jax.lax.conv_general_dilated(
      lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
      feature_group_count, batch_group_count, precision, preferred_element_type,
    )  # fmt: skip
  lhs = lhs.transpose(names.lhs_spec[0], *names.lhs_spec[2:], names.lhs_spec[1])
  rhs = rhs.transpose(*names.rhs_spec[2:], names.rhs_spec[1], names.rhs_spec[0])
  ones = (1,) * sides
  form = Form(
    tuple(window_strides), (), tuple(lhs_dilation or ones), tuple(rhs_dilation or ones),
    feature_group_count, precision, preferred_element_type,
  )  # fmt: skip
  if isinstance(padding, str):
    kernel = [_dilated(n, d) for n, d in zip(rhs.shape[:-2], form.rhs_dilation)]
    padding = jax.lax.padtype_to_pads(lhs.shape[1:-1], kernel, window_strides, padding)
  form = form._replace(padding=tuple((int(low), int(high)) for low, high in padding))
  y = _convolve(form, lhs, rhs)
  place = names.out_spec[0], *names.out_spec[2:], names.out_spec[1]
  return y.transpose([place.index(axis) for axis in range(sides + 2)])


def _plain(form: Form, x: Array, kernel: Array) -> Array:
  """Returns a convolution of channels-last images in the layout that is fast everywhere."""
  sides = 'XYZ'[: x.ndim - 2]
  layouts = (f'N{sides}C', f'{sides}IO', f'N{sides}C')
  return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=layouts, **form._asdict())


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _convolve(form: Form, x: Array, kernel: Array) -> Array:
  return _plain(form, x, kernel)


@_convolve.defjvp
def _convolve_jvp(form, primals, tangents):
  # Each derivative is given as the transpose of what reverse mode shall compute.
  x, kernel = primals
  y = _convolve(form, x, kernel)
  (from_x,) = jax.linear_transpose(functools.partial(_to_x, form, x.shape, kernel), y)(tangents[0])
  (from_kernel,) = jax.linear_transpose(functools.partial(_to_kernel, form, x, kernel.shape), y)(
    tangents[1]
  )
  return y, from_x + from_kernel


def _to_x(form: Form, shape: tuple[int, ...], kernel: Array, g: Array) -> Array:
  """Returns the gradient of images of a shape: the gradient of what was made of them, convolved
  with the kernel turned round."""
  groups, axes = form.feature_group_count, tuple(range(kernel.ndim - 2))
  if 1 < groups <= MOST_GROUPS:
    form, part = form._replace(feature_group_count=1), (*shape[:-1], shape[-1] // groups)
    pairs = zip(jnp.split(kernel, groups, -1), jnp.split(g, groups, -1))
    return jnp.concatenate([_to_x(form, part, *pair) for pair in pairs], -1)
  mirrored = jnp.flip(kernel, axes)
  if groups > 1:
    split = mirrored.reshape(*kernel.shape[:-1], groups, -1)
    mirrored = jnp.swapaxes(split, -3, -1).reshape(*kernel.shape[:-2], -1, shape[-1])
  else:
    mirrored = jnp.swapaxes(mirrored, -2, -1)
  padding = []
  for axis in axes:
    window = _dilated(kernel.shape[axis], form.rhs_dilation[axis])
    low = window - form.padding[axis][0] - 1
    wide = _dilated(shape[axis + 1], form.lhs_dilation[axis])
    high = wide + window - 1 - _dilated(g.shape[axis + 1], form.window_strides[axis]) - low
    padding.append((low, high))
  back = form._replace(
    window_strides=form.lhs_dilation,
    padding=tuple(padding),
    lhs_dilation=form.window_strides,
    preferred_element_type=kernel.dtype,
  )
  return _convolve(back, g.astype(kernel.dtype), mirrored)


def _to_kernel(form: Form, x: Array, shape: tuple[int, ...], g: Array) -> Array:
  """Returns the gradient of a kernel of a shape: the images convolved with the gradient of what was
  made of them, over the batch."""
  padding = []
  for axis in range(x.ndim - 2):
    low = form.padding[axis][0]
    wide = _dilated(x.shape[axis + 1], form.lhs_dilation[axis])
    window = _dilated(shape[axis], form.rhs_dilation[axis])
    over = _dilated(g.shape[axis + 1], form.window_strides[axis])
    padding.append((low, over - wide + window - low - 1))
  back = form._replace(
    window_strides=form.rhs_dilation,
    padding=tuple(padding),
    rhs_dilation=form.window_strides,
    feature_group_count=1,
    preferred_element_type=x.dtype,
  )
  g = g.astype(x.dtype)
  groups = form.feature_group_count
  if groups <= MOST_GROUPS:
    pairs = zip(jnp.split(x, groups, -1), jnp.split(g, groups, -1))
    kernels = [_of_batch(back, x_part, g_part) for x_part, g_part in pairs]
    return kernels[0] if groups == 1 else jnp.concatenate(kernels, -1)
  return _of_batch(back, x, g, batch_group_count=groups)


def _of_batch(form: Form, x: Array, g: Array, **groups: int) -> Array:
  """Returns a convolution over examples in place of channels, [I, J, D, E]."""
  swapped, kernel = jnp.swapaxes(x, 0, -1), jnp.moveaxis(g, 0, -2)
  if groups:
    sides = 'XYZ'[: x.ndim - 2]
    layouts = (f'N{sides}C', f'{sides}IO', f'N{sides}C')
    y = jax.lax.conv_general_dilated(
      swapped, kernel, dimension_numbers=layouts, **form._asdict() | groups
    )
  else:
    y = _convolve(form, swapped, kernel)
  return jnp.moveaxis(y, 0, -2)


def _dilated(size: int, dilation: int) -> int:
  return 0 if size == 0 else 1 + dilation * (size - 1)


def fast_convolutions() -> Any:
  """Returns a context in which Linen's convolutions are computed by `conv_general_dilated`.

  >>> conv, x = nn.Conv(4, (3, 3)), jnp.ones((1, 5, 5, 2))
  >>> variables = conv.init(jax.random.key(0), x)
  >>> with fast_convolutions():
  ...   fast = conv.apply(variables, x)
  >>> bool((fast == conv.apply(variables, x)).all())
  True
  """
  return nn.intercept_methods(_interceptor)


def _interceptor(
  call: Callable[..., Any],
  args: tuple[Any, ...],
  kwargs: dict[str, Any],
  context: nn.module.InterceptorContext,
) -> Any:
  module = context.module
  if context.method_name != '__call__' or not isinstance(module, CLASSES):
    return call(*args, **kwargs)
  if isinstance(module, nn.ConvTranspose):
    return _replaced(call, *args, **kwargs)
  if module.conv_general_dilated is not None or module.conv_general_dilated_cls is not None:
    return call(*args, **kwargs)
  # A bound module is frozen, and a copy would lose its scope.
  object.__setattr__(module, 'conv_general_dilated', conv_general_dilated)
  try:
    return call(*args, **kwargs)
  finally:
    object.__setattr__(module, 'conv_general_dilated', None)


def _replaced(call: Callable[..., Array], *args: Any, **kwargs: Any) -> Array:
  """Returns what a call does, with JAX's convolutions in it replaced by `conv_general_dilated`: for
  a module that takes no other function."""
  closed = jax.make_jaxpr(lambda: call(*args, **kwargs))()
  values: dict[Any, Any] = dict(zip(closed.jaxpr.constvars, closed.consts))
  read = lambda atom: atom.val if isinstance(atom, jax.extend.core.Literal) else values[atom]
  for equation in closed.jaxpr.eqns:
    operands = [read(atom) for atom in equation.invars]
    if equation.primitive is jax.lax.conv_general_dilated_p:
      params = {k: v for k, v in equation.params.items() if k != 'out_sharding'}
      results = [conv_general_dilated(*operands, **params)]
    else:
      params = equation.primitive.get_bind_params(equation.params)
      # Older versions of JAX give functions apart.
      subfuns, params = params if isinstance(params, tuple) else ((), params)
      results = equation.primitive.bind(*subfuns, *operands, **params)
      results = results if equation.primitive.multiple_results else [results]
    values |= zip(equation.outvars, results)
  return read(closed.jaxpr.outvars[0])
