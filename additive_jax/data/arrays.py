"""`from_arrays`: a data set of arrays of one's own, cut into splits."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, PyTree, Shaped

from additive_jax.batches import is_array, named_leaves, num_examples, rows
from additive_jax.data.coding import Coding, Column, coded_labels
from additive_jax.data.splits import ArraySplit, Data
from additive_jax.data.values import (
  CLASSES,
  LABELS,
  NUMBERS,
  TOKENS,
  YES_NO,
  Expected,
  check_inputs,
  check_used,
  constant_target,
)
from additive_jax.data.weights import Weighted, checked_weights, unweighted
from additive_jax.errors import UserError, checked_seed

AUTO = 'auto'
Given = float | tuple[Any, Any]
Parts = dict[str, tuple[PyTree, PyTree]]
TEXTS = 'USO'  # kinds of NumPy's types
GAPS = (
  'where {which} no class, a task with ignore_label leaves it out; num_outputs is the number of '
  'classes where some have no example'
)


def from_arrays(
  x: Any,
  y: Any,
  *,
  weights: Any = None,
  valid: Given = 0.1,
  test: Given = 0.2,
  seed: int | None = 0,
  task: Any = AUTO,
  class_names: Sequence[str] | None = None,
  num_outputs: int = 0,
  standardise: bool = True,
  name: str = 'arrays',
) -> Data:
  """Returns a data set of arrays, cut into splits to learn from, to choose by and to judge by.

  >>> x, y = np.random.default_rng(0).normal(size=(50, 4)), np.arange(50) % 3
  >>> data = from_arrays(x, y)
  >>> len(data.train), len(data.valid), len(data.test), data.task, data.num_outputs
  (35, 5, 10, 'classification', 3)

  Targets that are floats make a regression. They are standardised by the training examples, and
  losses are in units of their variance; `data.coding.decoded` gives outputs in the units of y:

  >>> data = from_arrays(x, 100 + 50 * x[:, 0])
  >>> data.task, bool(abs(data.train.y.mean()) < 1e-6), data.coding.decoded(data.test.y).shape
  ('regression', True, (10, 1))

  Args:
    x: inputs [N, ...], an array, or a pytree of them for a network of several inputs.
    y: targets [N, ...]: integers, booleans or texts, the class of each example; floats of a
      regression; integers [N, T], the next tokens of a text; for a `task` of your own anything.
    weights: what each example [N] or token [N, T] counts; None is 1. See `Weighted`.
    valid: the share to choose by, or (x, y); 0 is none: choices are then made on the test split.
    test: the share to judge by, or (x, y).
    seed: shuffles the examples before they are cut: first come those of test, then those of valid.
      None leaves them in their order, and cuts these from the end.
    task: 'classification', 'regression', 'language' and so on, a `Task`, or a task of your own;
      'auto' goes by y.
    class_names: of the classes, in order.
    num_outputs: classes, tokens of y (x may have others), or outputs of your own; 0 counts them.
    standardise: whether a regression's targets are.
    name: of the data, in messages and reports.

  Raises:
    UserError: for arrays of different lengths, splits without examples, labels, weights or numbers
      that make no sense, with the number of the example.
  """
  if isinstance(y, Weighted) and weights is None:
    y, weights = y
  whole = _arrays(x, 'x'), _weighted(_arrays(y, 'y'), weights)
  task = _task(task, unweighted(whole[1]), name)
  shares = {'test': test, 'valid': valid}
  given = _given(name, whole, shares, task, num_outputs or len(class_names or ()))
  parts, coding = _coded(name, _cut(name, given, shares, seed), name_of(task), standardise)
  names = tuple(class_names or (map(str, coding.classes) if coding else ())) or None
  num_outputs = num_outputs or len(names or ()) or _num_outputs(name, given, task)
  of = {part: ArraySplit(*examples, f'{name}, {part}') for part, examples in parts.items()}
  more: dict[str, Any] = {'num_tokens': _vocabulary(given, task, num_outputs), **of}
  return Data(name, task, num_outputs=num_outputs, class_names=names, coding=coding, **more)


def _given(
  name: str, whole: tuple[PyTree, PyTree], shares: dict[str, Given], task: Any, num_outputs: int
) -> Parts:
  """Returns the examples to cut, and the splits that the caller has cut, after a look at them."""
  parts: Parts = {'train': _checked(name, *whole, task, num_outputs)}
  for part, given in shares.items():
    if isinstance(given, tuple | list):
      where = f'{name}, {part}'
      parts[part] = _checked(where, *_pair(where, given), task, num_outputs)
  return parts


def _arrays(values: Any, what: str) -> PyTree:
  """Returns arrays of NumPy; a list of numbers is one array. What is float64 becomes float32."""
  if isinstance(values, list) and all(np.ndim(leaf) == 0 for leaf in jax.tree.leaves(values)):
    values = _array(values, what)
  return jax.tree.map(np.asarray, values)


def _array(values: Any, what: str) -> Shaped[np.ndarray, '...']:
  """Returns a list of lists as one array, which lists of different lengths are not."""
  try:
    return np.asarray(values)
  except ValueError:
    sizes = sorted({len(part) for part in values if isinstance(part, list)})
    told = f', of {sizes[0]} to {sizes[-1]}' if len(sizes) > 1 else ''
    raise UserError(
      f'{what}: lists of different lengths{told}: expected one length; pad the shorter ones, and '
      'say by weights= what is no padding'
    ) from None


def _task(task: Any, y: PyTree, name: str) -> Any:
  """Returns the task, by targets where it is to go by these.

  Raises:
    UserError: for a text that is nearly the name of one, or targets of another kind.
  """
  known = (AUTO, CLASSES, NUMBERS, TOKENS, YES_NO, LABELS)
  if isinstance(task, str) and task not in known:
    near = difflib.get_close_matches(task, known, n=1, cutoff=0.8)
    if near:
      expected = f'{", ".join(known)}; did you mean {near[0]!r}?'
      raise UserError(f'task {task!r} of {name}: expected {expected}')
  return kind_of(y, name) if isinstance(task, str) and task == AUTO else task


def _narrow(leaf: Shaped[np.ndarray, 'N ...']) -> Shaped[np.ndarray, 'N ...']:
  return leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf


def _weighted(y: PyTree, weights: Any) -> PyTree:
  return y if weights is None else Weighted(y, _array(weights, 'weights'))


def _checked(name: str, x: PyTree, y: PyTree, task: Any, num_outputs: int) -> tuple[PyTree, PyTree]:
  """Returns examples as the task has them, after a look at all of them: what is wrong is told with
  the number that the caller's example has."""
  leaves = [*named_leaves(x, 'x'), *named_leaves(unweighted(y), 'y')]
  empty = not jax.tree.leaves(x) or not jax.tree.leaves(y)
  if empty or len({leaf.shape[:1] for _, leaf in leaves}) > 1 or not leaves[0][1].shape:
    told = ' and '.join(f'{part} of shape {list(leaf.shape)}' for part, leaf in leaves[:4])
    more = ''
    if isinstance(x, list) and len(leaves) > len(x) > 1 and len(x) == len(leaves[-1][1]):
      more = '; a list of arrays is several inputs: pad and stack those of one, see weights='
    raise UserError(f'{name}: {told or "no arrays"}: expected as many examples of each{more}')
  if not num_examples(x):
    raise UserError(f'{name}: no examples: expected at least one')
  x, targets = jax.tree.map(_narrow, (x, unweighted(y)))
  kind = name_of(task)
  if kind == NUMBERS and is_array(targets) and targets.dtype.kind in 'fiu':
    targets = targets.reshape(len(targets), -1).astype(np.float32)
  if kind in (CLASSES, YES_NO, LABELS) and is_array(targets) and targets.dtype.kind == 'b':
    targets = targets.astype(np.int32)
  y = y._replace(y=targets) if isinstance(y, Weighted) else targets
  check_inputs(x, name)
  if kind == CLASSES and is_array(targets) and targets.dtype.kind in TEXTS:
    return x, checked_weights(y, name)
  ignored = getattr(task, 'ignore_label', None)
  Expected(kind, num_outputs, ignore_label=ignored).check_targets(x, y, name)
  return x, y


def kind_of(y: PyTree, name: str = 'arrays') -> str:
  """Returns the name of the task that targets are of.

  >>> kind_of(np.array([1, 0])), kind_of(np.array([0.5, 0.1])), kind_of(np.array([[3, 1]]))
  ('classification', 'regression', 'language')

  Raises:
    UserError: for targets of another kind.
  """
  if is_array(y):
    kind = y.dtype.kind
    if kind in 'biuUSO' and y.ndim == 1:
      return CLASSES
    if kind in 'iu' and y.ndim == 2 and y.shape[1] > 1:
      return TOKENS
    if kind == 'f' and y.ndim <= 2:
      return NUMBERS
  told = ', '.join(f'{part} {leaf.dtype} {list(leaf.shape)}' for part, leaf in named_leaves(y, 'y'))
  labels = 'labels [N]'
  if is_array(y) and y.ndim == 2 and y.shape[1] == 1:
    labels += ', as in y[:, 0]'
  raise UserError(
    f'{name}: {told}: expected {labels}, floats [N] or [N, targets], or tokens [N, T]; or a '
    'task, which says what they are'
  )


def name_of(task: Any) -> str:
  """Returns the name of a task, a text or a `Task`; '' for a loss of one's own.

  >>> name_of('regression'), name_of(aj.Task('language', ignore_label=-1)), name_of(abs)
  ('regression', 'language', '')
  """
  return task if isinstance(task, str) else getattr(task, 'name', '')


def _pair(name: str, given: Any) -> tuple[PyTree, PyTree]:
  """Returns the inputs and targets of a split that the caller has cut."""
  if len(given) != 2:
    raise UserError(f'{name}: {len(given)} parts: expected a share, or a pair (x, y)')
  x, y = given
  if isinstance(y, Weighted):
    return _arrays(x, f'{name}: x'), _weighted(_arrays(y.y, f'{name}: y'), y.weight)
  return _arrays(x, f'{name}: x'), _arrays(y, f'{name}: y')


def _cut(name: str, parts: Parts, given: dict[str, Given], seed: int | None) -> Parts:
  """Returns the splits of which shares were given, cut from the examples, beside the others."""
  total = num_examples(parts['train'][0])
  counts = {}
  for part, share in given.items():
    if isinstance(share, tuple | list):
      continue
    if not 0 <= share < 1 or (part == 'test' and not share):
      least = 'above 0' if part == 'test' else 'from 0'
      raise UserError(
        f'{part} {share!r} of {name}: expected a share {least} and below 1, or (x, y)'
      )
    counts[part] = round(share * total)
    if share and not counts[part]:
      raise UserError(
        f'{part} {share!r} of the {total} examples of {name} is none: expected at least one, or '
        '(x, y)'
      )
  if total <= sum(counts.values()):
    shares = ' and '.join(f'{part} {given[part]!r}' for part in counts)
    raise UserError(
      f'{shares or "no share"} of the {total} examples of {name} leaves none to learn from: '
      'expected some'
    )
  order = np.arange(total)[::-1]
  if seed is not None:
    order = np.random.Generator(np.random.PCG64(checked_seed(seed))).permutation(total)
  cut, start = {}, 0
  for part, count in counts.items():
    if count:
      cut[part], start = order[start : start + count], start + count
  places: dict[str, Int[np.ndarray, '_']] = {**cut, 'train': order[start:]}
  ordered = lambda places: np.sort(places) if seed is None else places
  taken = {part: rows(parts['train'], ordered(rest)) for part, rest in places.items()}
  return parts | taken


def _coded(name: str, parts: Parts, task: Any, standardise: bool) -> tuple[Parts, Coding | None]:
  """Returns splits with targets as numbers, and how a regression's or texts were coded."""
  of_all = [unweighted(y) for _, y in parts.values()]
  if task == NUMBERS and standardise:
    train = unweighted(parts['train'][1])
    if same := constant_target(parts['train'][1]):
      raise UserError(
        f'{name}: target {same[0]} is {same[1]} in all {len(train)} training examples: expected '
        'one that varies'
      )
    coding = Coding((), targets=(Column.of('y', train, np.arange(len(train))),))
    return _with_targets(parts, coding.targets[0]), coding
  if task == CLASSES and is_array(of_all[0]) and of_all[0].dtype.kind in TEXTS:
    _, classes = coded_labels(np.concatenate([y.astype(str) for y in of_all]))
    code = lambda y: np.searchsorted(np.array(classes), y.astype(str)).astype(np.int32)
    return _with_targets(parts, code), Coding((), classes=classes)
  return parts, None


def _with_targets(parts: Parts, change: Callable[[Any], Any]) -> Parts:
  """Returns splits with other targets, and the same weights."""
  changed = {}
  for part, (x, y) in parts.items():
    new = change(unweighted(y))
    changed[part] = x, (y._replace(y=new) if isinstance(y, Weighted) else new)
  return changed


def _num_outputs(name: str, parts: Parts, task: Any) -> int:
  """Returns how many outputs a network needs for the targets."""
  targets = [unweighted(y) for _, y in parts.values()]
  kind, ignored = name_of(task), getattr(task, 'ignore_label', None)
  if ignored is not None:
    targets = [np.where(y == ignored, 0, y) for y in targets]
  if kind == CLASSES and targets[0].ndim == 1:
    return check_used(np.concatenate(targets), name, GAPS)
  if kind == TOKENS:
    return max(_num_tokens(parts), *(int(tokens.max()) + 1 for tokens in targets))
  first = jax.tree.leaves(targets[0])[0]
  return first.shape[-1] if first.ndim > 1 else 1


def _vocabulary(parts: Parts, task: Any, num_outputs: int) -> int:
  """Returns `Data.num_tokens`: at least as many as outputs."""
  return max(num_outputs, _num_tokens(parts)) if name_of(task) == TOKENS else 0


def _num_tokens(parts: Parts) -> int:
  """Returns how many different tokens inputs may be; 0 where they are none."""
  inputs = [x for x, _ in parts.values() if is_array(x) and x.dtype.kind in 'iu']
  return max((int(x.max()) + 1 for x in inputs), default=0)
