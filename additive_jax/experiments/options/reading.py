"""From a config, which a user writes, to checked options."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import numbers
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from additive_jax.errors import UserError, did_you_mean
from additive_jax.experiments.options.rules import LATER, SAME_RUN, Before, Rule
from additive_jax.experiments.options.studies import Options
from additive_jax.train.optimizers import arguments_taken

Section = TypeVar('Section', bound=Any)

log = logging.getLogger('additive_jax')

# The sections that name functions of Optax. Arguments that only a default gives are left out where
# another function does not take them.
OPTAX = {'optimizer': 'optimizer', 'schedule': 'schedule', 'booster.schedule': 'schedule'}
# The sections whose options lower rooms know.
GENERAL = ('data', 'model', 'task', 'train', 'sampler', 'search', 'balance')
NUMBERS = {int: numbers.Integral, float: numbers.Real}
WORDS = {
  bool: 'true or false',
  int: 'an integer',
  float: 'a number',
  str: 'text',
  tuple: 'a list of values, such as (1, 2)',
  dict: 'names and values',
}


@dataclasses.dataclass(frozen=True)
class Option:
  """One option, as its section declares it.

  Attributes:
    name: dotted, as in a config: `train.zero`.
    kind: bool, int, float, str, dict, or tuple.
    item: the type of a tuple's values; None for other kinds.
    rule: what is allowed of its values; None for all of their type.
    same_run: whether a run with another value of it is the same run.
    later: whether runs of earlier versions do not know it, see `identity`.
    before: its value in them, where that is not its default.

  >>> DECLARED['train.epochs'].kind, DECLARED['train.epochs'].same_run
  (<class 'float'>, False)
  >>> DECLARED['train.epochs'].read('many')
  Traceback (most recent call last):
  additive_jax.errors.UserError: config.train.epochs 'many': expected a number
  """

  name: str
  kind: type
  item: type | None = None
  rule: Rule | None = None
  same_run: bool = False
  later: bool = False
  before: Before | None = None

  def read(self, value: Any) -> Any:
    """Returns a value in the option's own type: 2 as 2.0, a list as a tuple.

    >>> DECLARED['train.epochs'].read(2)
    2.0

    Raises:
      UserError: for another type, or a value that is not allowed.
    """
    if not _is_of(value, self.kind, self.item):
      raise UserError(f'config.{self.name} {value!r}: expected {self.expected}')
    value = value.to_dict() if isinstance(value, ConfigDict) else self.kind(value)
    if self.rule and not self.rule.allows(value):
      hint = did_you_mean(value, self.rule.choices) if self.rule.choices else ''
      raise UserError(f'config.{self.name} {value!r}: expected {self.rule.expected}{hint}')
    return value

  @property
  def expected(self) -> str:
    """What is expected in place of a value of another type."""
    if self.rule and self.kind in (str, tuple):
      return self.rule.expected
    return WORDS[self.kind]


def _is_of(value, kind, item=None):
  """Whether a value is of an option's kind, and those of a tuple are of its item's."""
  if kind is tuple:
    return isinstance(value, list | tuple) and all(_is_of(one, item) for one in value)
  if kind in NUMBERS:
    return isinstance(value, NUMBERS[kind]) and not isinstance(value, bool)
  return isinstance(value, Mapping | ConfigDict if kind is dict else kind)


def options_of(section: type, prefix: str = '') -> dict[str, Option | type]:
  """Returns what a section declares by its fields' names: options, and sections in it.

  >>> from additive_jax.experiments.options import TrainOptions
  >>> options_of(TrainOptions, 'train.')['zero']
  Option(name='train.zero', kind=<class 'bool'>, item=None, rule=None, same_run=True, later=False,
         before=None)
  """
  declared: dict[str, Any] = {}
  for name, kind in typing.get_type_hints(section, include_extras=True).items():
    marks = getattr(kind, '__metadata__', ())
    kind = kind.__origin__ if marks else kind
    if dataclasses.is_dataclass(kind):
      declared[name] = kind
      continue
    items, kind = typing.get_args(kind), typing.get_origin(kind) or kind
    item = items[0] if kind is tuple else None
    rule = next((mark for mark in marks if isinstance(mark, Rule)), None)
    later = LATER in marks
    before = next((mark for mark in marks if isinstance(mark, Before)), None)
    same_run = SAME_RUN in marks
    declared[name] = Option(f'{prefix}{name}', kind, item, rule, same_run, later, before)
  return declared


def _all_options(section, prefix=''):
  """Every option of a section and of those in it, in the order in which they stand."""
  for name, declared in options_of(section, prefix).items():
    if isinstance(declared, Option):
      yield declared
    else:
      yield from _all_options(declared, f'{prefix}{name}.')


# Every option by its dotted name, and the names of those that may differ from one start of a run to
# the next.
DECLARED = {option.name: option for option in _all_options(Options)}
PLACEMENT = tuple(option.name for option in DECLARED.values() if option.same_run)


def read_options(config: ConfigDict | Mapping[str, Any] | Options) -> Options:
  """Returns the options of a config, each checked by what its section declares.

  Args:
    config: as `get_config()` of `configs/default.py` gives it, or nested dicts, or `Options`.

  Raises:
    UserError: for an option that is unknown, missing, of another type, or not allowed.

  >>> read_options(Options(num_seeds=0))
  Traceback (most recent call last):
  additive_jax.errors.UserError: config.num_seeds 0: expected 1 to 10,000
  """
  values = dataclasses.asdict(config) if isinstance(config, Options) else config
  options = read_section(Options, values)
  for name, kind in OPTAX.items():
    section, default = (value_of(o, name) for o in (options, Options()))
    kwargs = arguments_taken(kind, section.name, section.kwargs, default.kwargs)
    if unasked := section.kwargs.keys() - kwargs.keys():
      log.info('config.%s: %s takes no %s', name, section.name, ', '.join(sorted(unasked)))
      options = replaced(options, {f'{name}.kwargs': kwargs})
  return options


def read_section(
  section: type[Section], values: ConfigDict | Mapping[str, Any], prefix: str = ''
) -> Section:
  """Returns one section of a config, checked as by `read_options`.

  >>> from additive_jax.experiments.options import DataOptions
  >>> read_section(DataOptions, dataclasses.asdict(DataOptions()) | {'sequence_length': 0}, 'data.')
  Traceback (most recent call last):
  additive_jax.errors.UserError: config.data.sequence_length 0: expected 1 to 1,000,000

  Args:
    section: the dataclass that declares it.
    values: all of its options by name.
    prefix: what stands before their names in messages.
  """
  declared = options_of(section, prefix)
  for name in values:
    if name not in declared:
      raise UserError(
        f"unknown option 'config.{prefix}{name}': expected one that the config has"
        f'{did_you_mean(name, list(declared))}'
      )
  checked = {}
  for name, option in declared.items():
    if name not in values:
      raise UserError(f'no config.{prefix}{name}: expected every option of configs/default.py')
    value = values[name]
    if isinstance(option, Option):
      checked[name] = option.read(value)
    elif isinstance(value, Mapping | ConfigDict):
      checked[name] = read_section(option, value, f'{prefix}{name}.')
    else:
      raise UserError(
        f'config.{prefix}{name} {value!r}: expected one option at a time, config.{prefix}{name}.KEY'
      )
  return section(**checked)


def value_of(options: Options, name: str) -> Any:
  """Returns the value of an option by its dotted name.

  >>> value_of(Options(), 'train.zero')
  False
  """
  return functools.reduce(getattr, name.split('.'), options)


def refused(options: Options, *names: str, expected: str) -> UserError:
  """Returns the error of options that do not suit each other, the model, the data or the devices.

  >>> refused(Options(), 'booster.sync_epochs', 'booster.join', expected='0')
  UserError("config.booster.sync_epochs 0.5 with config.booster.join 'average': expected 0")
  """
  values = [value_of(options, name) for name in names]
  given = ' with '.join(f'config.{name} {value!r}' for name, value in zip(names, values))
  return UserError(f'{given}: expected {expected}')


def identity(options: Options) -> dict[str, Any]:
  """Returns the options as nested dicts that say which run it is: without those that came later and
  are as they were before, so that the runs of earlier versions stay the same runs.

  >>> 'slot_clip_norm' in identity(Options())['train']
  False
  """
  values = dataclasses.asdict(options)
  default = Options()
  for name, option in DECLARED.items():
    before = value_of(default, name) if option.before is None else option.before.value
    if option.later and value_of(options, name) == before:
      *sections, last = name.split('.')
      section = functools.reduce(dict.__getitem__, sections, values)
      del section[last]
      if not section:  # one that came later as a whole
        del values[name.partition('.')[0]]
  return values


@contextlib.contextmanager
def named(options: Options) -> Iterator[None]:
  """Gives options their full names in messages of lower rooms, which know them by the last.

  >>> from additive_jax.experiments.options import TrainOptions
  >>> with named(Options(train=TrainOptions(fsdp_devices=3))):
  ...   raise UserError('fsdp_devices 3 on 4 devices: expected a number that divides them')
  Traceback (most recent call last):
  additive_jax.errors.UserError: config.train.fsdp_devices 3 on 4 devices: expected a number that
  divides them
  """
  try:
    yield
  except UserError as error:
    text = str(error)
    # Those of the experiment come first: what it calls so is more likely to be meant.
    own = [name for name in DECLARED if name.startswith(f'{options.experiment}.')]
    general = [name for name in DECLARED if name.partition('.')[0] in GENERAL]
    for name in (*own, *general):
      value = re.escape(repr(value_of(options, name)))
      word = name.rpartition('.')[2]
      pattern = rf'(?<![\w.])(?<!of ){word}(?= {value}(?![\w.]\w))'
      text = re.sub(pattern, f'config.{name}', text)
    if type(error) is not UserError or text == str(error):
      raise
    raise UserError(text) from error


def replaced(options: Section, changes: Mapping[str, Any]) -> Section:
  """Returns the options, or those of a section, with other values of some, by dotted names.

  >>> replaced(Options(), {'train.zero': True}).train.zero
  True
  """
  for name, value in changes.items():
    first, _, rest = name.partition('.')
    if rest:
      value = replaced(getattr(options, first), {rest: value})
    options = dataclasses.replace(options, **{first: value})
  return options


def selected(kind: type[Section], *sections: Any, **values: Any) -> Section:
  """Returns an object whose fields are options of the same names, and `values`.

  An object of a lower room, such as `Placement(mesh, zero, offload, …)`, gets its options without
  the names of them being written once more.

  >>> from additive_jax.experiments.options import TrainOptions
  >>> fewer = dataclasses.make_dataclass('Fewer', ['zero', 'offload'])
  >>> selected(fewer, TrainOptions())
  Fewer(zero=False, offload=False)
  """
  names = [field.name for field in dataclasses.fields(kind)]
  shared = {name: getattr(s, name) for s in sections for name in names if hasattr(s, name)}
  return kind(**shared, **values)
