"""What the package is made of: every folder and file of the tree is declared for the wheel.

`.ci/wheel` builds the wheel, installs it and runs it from another directory.
"""

import configparser
from fnmatch import fnmatch

import tiny

CONFIG = configparser.ConfigParser()
CONFIG.read(tiny.ROOT / 'setup.cfg')
PACKAGE = tiny.ROOT / 'additive_jax'


def words(section, key):
  return CONFIG[section][key].split()


def test_every_folder_is_a_package():
  """One without `__init__.py`, or that is not listed, would be missing from the wheel alone."""
  folders = {path.parent for path in PACKAGE.rglob('*.py')}
  assert [folder for folder in folders if not (folder / '__init__.py').exists()] == []
  names = {'.'.join(folder.relative_to(tiny.ROOT).parts) for folder in folders}
  assert {*names, 'additive_jax.configs'} == set(words('options', 'packages'))


def test_every_file_is_packaged():
  patterns = words('options.package_data', '*')
  files = [p for p in PACKAGE.rglob('*') if p.is_file() and '__pycache__' not in p.parts]
  others = [path.name for path in files if path.suffix != '.py']
  assert 'py.typed' in others
  assert [name for name in others if not any(fnmatch(name, p) for p in patterns)] == []
