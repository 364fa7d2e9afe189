"""Configs by name from any directory (`exp2`), or by the path of their file (`mine/exp2.py`)."""

from __future__ import annotations

import builtins
import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import additive_jax
from additive_jax.errors import UserError, one_line, user_path

if TYPE_CHECKING:
  from ml_collections import ConfigDict

PACKAGE = 'additive_jax.configs'


def _folder() -> Path:
  """Returns the folder of the packaged configs, which can be imported as `additive_jax.configs`.

  In a wheel they are a folder of the package. In a source tree they stand beside the package; there
  the import is told where, so that it works without an installation and never takes the configs of
  another tree:

    site-packages/additive_jax/configs/exp2.py        tree/configs/exp2.py
    site-packages/additive_jax/cli/configs.py         tree/additive_jax/cli/configs.py
  """
  root = Path(__file__).parents[1]
  if (root / 'configs').is_dir():
    return root / 'configs'
  folder = root.parent / 'configs'
  spec = ModuleSpec(PACKAGE, None, is_package=True)
  spec.submodule_search_locations = [str(folder)]
  package = importlib.util.module_from_spec(spec)
  sys.modules[PACKAGE] = vars(additive_jax)['configs'] = package
  return folder


FOLDER = _folder()


def config_names() -> list[str]:
  """Returns the names of the packaged configs.

  >>> 'exp2' in config_names()
  True
  """
  return sorted(file.stem for file in FOLDER.glob('*.py'))


def config_file(name: str) -> Path:
  """Returns the file of a config.

  >>> config_file('exp2').name
  'exp2.py'

  Args:
    name: of a packaged config, or the path of a Python file; what follows a colon is left out.

  Raises:
    UserError: if there is neither.
  """
  path = name.partition(':')[0]
  names = config_names()
  file = FOLDER / f'{path}.py' if path in names else user_path(path, '--config')
  if file.is_file():
    return file
  near = difflib.get_close_matches(file.stem, names, n=1)
  hint = f'; did you mean --config={near[0]}?' if near else ''
  expected = f'a Python file that is there, or one of {", ".join(names)}'
  raise UserError(f'--config={name}: expected {expected}{hint}')


def load_config(name: str) -> ConfigDict:
  """Returns the options that a config gives: what its function `get_config` returns.

  >>> load_config('exp2').experiment
  'cotrain'

  Args:
    name: of a packaged config, or the path of a Python file. `file.py:TEXT` calls
      `get_config('TEXT')`.

  Raises:
    UserError: if there is no such config, or its code fails; the line that failed is named.
  """
  file = config_file(name)
  argument = name.partition(':')[2]
  # A config may import its neighbours as `configs.exp1`, from the folder above its own.
  sys.path.insert(0, str(file.resolve().parent.parent))
  try:
    module = ModuleType(f'config_{file.stem}')
    module.__file__ = str(file)
    SourceFileLoader(module.__name__, str(file)).exec_module(module)
    config = module.get_config(argument) if argument else module.get_config()
  except (Exception, SystemExit) as error:
    raise UserError(f'{_place(error, file)}: {explanation(error)}') from error
  finally:
    sys.path.pop(0)
  from ml_collections import ConfigDict

  if not isinstance(config, ConfigDict):
    given = type(config).__name__
    raise UserError(f'{file}: get_config() gives {given}: expected a ConfigDict of the options')
  return config


def _place(error, file):
  """The file and line of a config that an error is about; the file alone where there is no line."""
  if isinstance(error, SyntaxError) and error.filename:
    return f'{error.filename}, line {error.lineno}'
  lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
  return f'{file}, line {lines[-1]}' if lines else str(file)


def explanation(error: BaseException, argv: Sequence[str] = ()) -> str:
  """Returns in one line why an option cannot be set.

  Args:
    error: what ml_collections raised, or code of a config, which may have tried to end Python.
    argv: the command line that set the option, unless the config's file did.
  """
  if isinstance(error, SystemExit):
    return f'exit({error.code!r}): expected get_config() to return the options'
  types = re.fullmatch(
    r"Could not override field '(\w+)' \(reference\)\. (.*) is of original type <class '.*'> "
    r"and cannot be casted to type <class '(\w+)'>",
    one_line(error),
  )
  if types:
    from additive_jax.experiments.options import WORDS

    return f'option {types[1]!r} {types[2]}: expected {WORDS[getattr(builtins, types[3])]}'
  return _unknown_option(error, argv) or one_line(error)


def _unknown_option(error, argv):
  """Says which option a config does not have; None for an error of another kind."""
  text = str(error)
  # Of a key that the config's file sets, or of one on the command line.
  missing = re.match(r"""\W*Key "(\w+)" does not exist|\W*'(\w+)""", text)
  if not isinstance(error, KeyError | AttributeError) or not missing:
    return None
  options = [word.split('=')[0].lstrip('-') for word in argv if word.startswith('--config.')]
  option = missing[1] or next((o for o in options if missing[2] in o.split('.')), None)
  if option is None:
    return None
  near = re.search(r'Did you mean "(\w+)"', text)
  hint = f'; did you mean {near[1]!r}?' if near else ''
  return f'unknown option {option!r}: expected one that the config has{hint}'
