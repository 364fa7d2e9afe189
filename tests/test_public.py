"""What every public name of the package has: types, a docstring, and a size that can be read.

  python tests/test_public.py              counts what is missing, room by room
  python tests/test_public.py gates run    lists each place in these rooms

Public is what has no leading underscore, in a module and in a public class of one.
"""

from __future__ import annotations

import ast
import collections
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / 'additive_jax'
FUNCTION_LINES, FILE_LINES = 60, 350
# Arrays in these say their shape, or may leave it open.
SHAPED = re.compile(
  r'(Float|Int|UInt|BFloat|Bool|Shaped|Num|Key|Integer|Inexact|Real)(\d*)|Callable|PyTree'
)
ARRAYS = ('Array', 'jax.Array', 'jnp.ndarray', 'np.ndarray')
Function = ast.FunctionDef | ast.AsyncFunctionDef


def module_name(path: Path) -> str:
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(part for part in parts if part != '__init__')


def _untyped(function: Function, name: str, is_method: bool) -> Iterator[str]:
  """What lacks a type, or is an array without a shape, in one signature."""
  spec = function.args
  arguments = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs]
  static = any(getattr(d, 'id', '') == 'staticmethod' for d in function.decorator_list)
  if is_method and not static:
    arguments = arguments[1:]
  for argument in [*arguments, *filter(None, (spec.vararg, spec.kwarg))]:
    yield from _of_annotation(argument.annotation, f'{name}({argument.arg})')
  if function.name != '__init__':
    yield from _of_annotation(function.returns, f'{name} -> ')


def _of_annotation(annotation: ast.expr | None, place: str) -> Iterator[str]:
  if annotation is None:
    yield f'{place}: no type'
  elif _has_bare_array(annotation):
    yield f'{place}: an array without a shape: {ast.unparse(annotation)}'


def _has_bare_array(node: ast.AST) -> bool:
  if isinstance(node, ast.Subscript) and SHAPED.fullmatch(ast.unparse(node.value)):
    return False
  return ast.unparse(node) in ARRAYS or any(map(_has_bare_array, ast.iter_child_nodes(node)))


def faults(path: Path) -> Iterator[tuple[str, int, str]]:
  """(kind, line, what is missing) of every fault of a file; kinds are the columns of the table."""
  text = path.read_text()
  tree = ast.parse(text)
  lines = text.count('\n')
  if lines > FILE_LINES:
    yield 'long file', 1, f'{lines} lines, at most {FILE_LINES}'
  if text.strip() and not ast.get_docstring(tree):
    yield 'docstring', 1, 'the module has no docstring'
  for node in ast.walk(tree):
    if isinstance(node, Function):
      length = node.end_lineno - node.lineno + 1
      if length > FUNCTION_LINES:
        yield 'long function', node.lineno, f'{node.name}: {length} lines, at most {FUNCTION_LINES}'
  yield from _of_body(tree.body, '')


def _of_body(body: list[ast.stmt], owner: str) -> Iterator[tuple[str, int, str]]:
  for node in body:
    if not isinstance(node, Function | ast.ClassDef):
      if owner and isinstance(node, ast.AnnAssign) and not ast.unparse(node.target).startswith('_'):
        for text in _of_annotation(node.annotation, f'{owner}{ast.unparse(node.target)}'):
          yield 'type', node.lineno, text
      continue
    name = f'{owner}{node.name}'
    if isinstance(node, ast.ClassDef):
      if not node.name.startswith('_'):
        if not ast.get_docstring(node):
          yield 'docstring', node.lineno, f'{name} has no docstring'
        yield from _of_body(node.body, f'{name}.')
      continue
    if node.name.startswith('_') and node.name not in ('__init__', '__call__'):
      continue
    for text in _untyped(node, name, bool(owner)):
      yield 'type', node.lineno, text
    # A method of few lines may be said by its name, its types and its class.
    if not ast.get_docstring(node) and not owner:
      yield 'docstring', node.lineno, f'{name} has no docstring'


FILES = sorted(PACKAGE.rglob('*.py'))


@pytest.mark.parametrize('path', FILES, ids=[module_name(path) for path in FILES])
def test_public_names_are_typed_and_documented_and_of_readable_size(path):
  found = [f'{path.relative_to(ROOT)}:{line}: {text}' for _, line, text in faults(path)]
  assert not found, '\n'.join(found)


def test_faults_are_seen(tmp_path):
  file = tmp_path / 'bad.py'
  file.write_text(
    "def f(x, y: int, *rest, z: jax.Array | None) -> Float[Array, 'n']:\n  return x\n"
    'class A:\n  """A."""\n  x: np.ndarray | None\n  y: Float[np.ndarray, "n"]\n'
    '  def m(self, q): ...\n  def _m(self, q): ...\n'
    'def long() -> None:\n  """Long."""\n' + '  pass\n' * 60
  )
  found = collections.Counter(kind for kind, _, _ in faults(file))
  assert found == {'type': 6, 'docstring': 2, 'long function': 1}


def _report(rooms: list[str]) -> None:
  kinds = ('type', 'docstring', 'long function', 'long file')
  table: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
  for path in FILES:
    parts = path.relative_to(PACKAGE).parts
    room = parts[0] if len(parts) > 1 else 'root'
    table[room]['lines'] += path.read_text().count('\n')
    table[room]['examples'] += len(re.findall(r'^\s*>>> ', path.read_text(), re.MULTILINE))
    for kind, line, text in faults(path):
      table[room][kind] += 1
      if room in rooms:
        print(f'{path.relative_to(ROOT)}:{line}: {text}')
  columns = ('lines', *kinds, 'examples')
  print(f'{"room":12}' + ''.join(f'{column:>14}' for column in columns))
  for room in sorted(table):
    print(f'{room:12}' + ''.join(f'{table[room][column]:14}' for column in columns))
  total = {column: sum(counts[column] for counts in table.values()) for column in columns}
  print(f'{"all":12}' + ''.join(f'{total[column]:14}' for column in columns))


if __name__ == '__main__':
  _report(sys.argv[1:])
