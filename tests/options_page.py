"""Writes `configs/default.py`: every option with its meaning, what is allowed, and its default.

python tests/options_page.py > configs/default.py
"""

from __future__ import annotations

import ast
import inspect
import textwrap

from additive_jax.experiments.options import Option, Options, options_of

WIDTH = 100
HEAD = '''\
"""Every option, with its default. Other configs override a few; so does the command line.

  additive-jax --config=exp2 --config.learning_rate=3e-4

A key that is not in this file is refused, and so is a value of another type, or one that is not
allowed. The file is written by `python tests/options_page.py`.
"""

from pathlib import Path

from ml_collections import ConfigDict

# Where the Debian package dataset-fashion-mnist puts its files.
FASHION_MNIST = Path('/usr/share/datasets/fashion-mnist')


def images() -> tuple[str, int]:
  """The images to use, and a patch size that suits them: Fashion-MNIST where it is installed, else
  digits."""
  return (f'idx:{FASHION_MNIST}', 4) if FASHION_MNIST.is_dir() else ('digits', 2)


def get_config() -> ConfigDict:
  """The default options."""
  config = ConfigDict()

'''
FOOT = """
  # A misspelt option is refused; what Optax or a model of your own takes is not known here.
  config.lock()
  for part in (config.model, config.optimizer, config.schedule, config.booster.schedule):
    part.kwargs.unlock()
  return config
"""


def render() -> str:
  """Returns the text of `configs/default.py`."""
  return HEAD + '\n'.join(_lines(Options(), 'config')) + '\n' + FOOT


def meanings(section: type) -> dict[str, str]:
  """Returns what each field of a section means: the text below it, in one line."""
  (body,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
  texts = {}
  for field, text in zip(body.body, body.body[1:]):
    if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
      texts[field.target.id] = ' '.join(text.value.value.split())
  return texts


def _lines(section, path):
  """The lines that set a section's options, which are called `path`.name."""
  texts, lines = meanings(type(section)), []
  after_section = False
  for name, declared in options_of(type(section)).items():
    value, target = getattr(section, name), f'{path}.{name}'
    if isinstance(declared, Option):
      lines += ['', *_option(target, declared, texts[name], value)][not after_section :]
    else:
      text = texts.get(name) or inspect.getdoc(type(value)).partition('>>>')[0]
      lines += ['', *_comment(text), f'  {target} = ConfigDict()', *_lines(value, target)]
    after_section = path == 'config' and not isinstance(declared, Option)
  return lines


def _option(target, option, text, value):
  """The comment and the line of one option."""
  if option.rule:
    text = f'{text.removesuffix(".")}. {option.rule.expected[0].upper()}{option.rule.expected[1:]}.'
  if option.same_run and 'identity' not in text:
    text += " Not part of a run's identity."
  if option.kind is dict:
    value = f'ConfigDict({value}, type_safe=False)' if value else 'ConfigDict()'
  else:
    value = repr(value)
  return [*_comment(text), f'  {target} = {value}']


def _comment(text):
  return textwrap.wrap(
    ' '.join(text.split()), WIDTH, initial_indent='  # ', subsequent_indent='  # '
  )


if __name__ == '__main__':
  print(render(), end='')
