"""The checks of arrays that run while tests run."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from array_checks import checked
from jaxtyping import Array, Float

from additive_jax.gates import sums


def scaled(
  x: Float[Array, 'batch width'], scale: Float[Array, 'width'] | None, num: int = 1
) -> Float[Array, 'batch width']:
  return x if scale is None else (x * scale)[:num] if num > 1 else x * scale


def test_a_shape_or_dtype_that_its_annotation_excludes_is_refused_under_jit_too():
  check = checked(scaled)
  x = jnp.ones((4, 3))
  assert check(x, None).shape == jax.jit(check)(x, jnp.ones(3)).shape == (4, 3)
  wrong = [(x, jnp.ones(4)), (x[0], None), (x.astype(int), None), (np.ones((4, 3)), None)]
  for call in (check, jax.jit(check)):
    for arguments in wrong[: 3 if call is not check else 4]:  # jit makes JAX's of NumPy's
      with pytest.raises(jaxtyping.TypeCheckError):
        call(*arguments)


def test_what_is_returned_is_checked_too():
  with pytest.raises(jaxtyping.TypeCheckError, match='return value'):
    checked(scaled)(jnp.ones((4, 3)), jnp.ones(3), 2)


def test_plain_types_are_left_to_mypy_and_functions_without_arrays_to_themselves():
  checked(scaled)(jnp.ones((4, 3)), jnp.ones(3), 1.0)

  def plain(text: str, labels: list[int]) -> str: ...

  assert checked(plain) is plain
  assert checked(scaled).__annotations__ == scaled.__annotations__


def test_the_package_under_test_is_checked():
  assert hasattr(sums, '__checks_arrays__')
