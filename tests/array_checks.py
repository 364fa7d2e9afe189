"""Shapes and dtypes of arrays, checked in every call while tests run.

`install` puts a decorator on every function of the package as it is imported. Where a signature
has arrays (`Float[Array, 'batch width']`), each call checks them, under `jit` too, and that one
letter has one size within the call: beartype does the checking, jaxtyping the letters. Functions
without arrays stay as they are, and plain types are mypy's: a test that passes a wrong one on
purpose, to read the message, has to reach it. (`jaxtyping.install_import_hook` wraps all functions
for all their types; importing the package then takes 7 s in place of 1.)
"""

import ast
import functools
import importlib.machinery
import inspect
import sys
import typing
from collections.abc import Callable
from types import CodeType

import beartype
import jaxtyping

DECORATOR = '__checks_arrays__'


def install(package: str) -> None:
  """Checks the arrays of every module of `package` that is imported from now on."""
  present = [name for name in sys.modules if name == package or name.startswith(f'{package}.')]
  assert not present, f'{present} were imported before their arrays could be checked'
  sys.meta_path.insert(0, _Finder(package))


class _Finder(importlib.machinery.PathFinder):
  def __init__(self, package: str):
    self.package = package

  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] != self.package:
      return None
    spec = super().find_spec(name, path, target)
    if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
      spec.loader = _Loader(spec.loader.name, spec.loader.path)
    return spec


class _Loader(importlib.machinery.SourceFileLoader):
  def get_code(self, fullname: str) -> CodeType:  # not from `__pycache__`, nor into it
    tree = ast.parse(self.get_data(self.path), self.path)
    for node in ast.walk(tree):
      if isinstance(node, ast.FunctionDef):
        decorator = ast.copy_location(ast.Name(DECORATOR, ast.Load()), node)
        node.decorator_list.append(decorator)  # innermost: others may hide the signature
    return compile(tree, self.path, 'exec', dont_inherit=True)

  def exec_module(self, module) -> None:
    setattr(module, DECORATOR, checked)
    super().exec_module(module)


def checked(function: Callable) -> Callable:
  """`function` with the arrays of its signature checked; itself where it has none."""
  arrays = {}
  for name, annotation in function.__annotations__.items():
    try:
      hint = _resolved(annotation, function.__globals__)
    except NameError:  # imported for mypy alone, or defined further down: no array of ours
      continue
    if _has_array(hint):
      arrays[name] = hint
  if not arrays or inspect.isgeneratorfunction(function):
    return function

  @functools.cache  # made in the first call: most functions of a module have none in a test
  def check() -> Callable:
    plain = function.__annotations__
    function.__annotations__ = arrays
    wrapped = jaxtyping.jaxtyped(function, typechecker=beartype.beartype)
    function.__annotations__ = plain
    return wrapped

  @functools.wraps(function)
  def call(*args, **kwargs):
    __tracebackhide__ = True
    return check()(*args, **kwargs)

  return call


def _has_array(hint) -> bool:
  if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
    return True
  is_function = typing.get_origin(hint) is Callable  # what it takes is seen where it is called
  return not is_function and any(map(_has_array, typing.get_args(hint)))


def _resolved(annotation, names: dict):
  return eval(annotation, names) if isinstance(annotation, str) else annotation
