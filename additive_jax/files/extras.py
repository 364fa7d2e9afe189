"""Packages that only some files need, imported when one is met."""

from __future__ import annotations

import importlib
from typing import Any

from additive_jax.errors import UserError


def needs(module: str, what: str) -> Any:
  """Returns a module of the extra `pretrained`.

  >>> needs('no_such_module', 'a file of that kind')
  Traceback (most recent call last):
  additive_jax.errors.UserError: a file of that kind needs no_such_module: expected pip install
  'additive_jax[pretrained]'

  Args:
    module: its name.
    what: needs it, for the error.

  Raises:
    UserError: where it is not installed.
  """
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    if error.name != module:
      raise
    raise UserError(
      f"{what} needs {module}: expected pip install 'additive_jax[pretrained]'"
    ) from error
