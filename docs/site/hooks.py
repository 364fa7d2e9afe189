"""Pages that are made of the code when the site is built: the API, and every option.

An entry of `PAGES` is a module, of which everything in its `__all__` is shown, or one name. Nothing
is imported: signatures, types and docstrings are read from the texts.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
PAGES = {
  'experiments': (
    'Experiments',
    'Experiments as calls, and what a study of your own is made of. Options are those of '
    '[the table](../options.md), by their full names or the last part of them.',
    'experiments.front.sweep experiments.front.cotrain experiments.front.stochastic '
    'experiments.prune.prune cli.configs.load_config experiments.study.Result '
    'experiments.study.Study experiments.arms.Arm experiments.arms.Start experiments.arms.Trained '
    'experiments.session.Session experiments.records.Records experiments.options.read_options '
    'experiments.options.replaced',
  ),
  'models': (
    'Structures and networks',
    'What a structure is, and the networks whose structures they are.',
    'gates.structure.Structure gates.structure.Gate gates.structure.Space '
    'gates.structure.all_structures models models.costs',
  ),
  'gates': (
    'Gates',
    'The three kinds of `+` as pure functions of arrays, mixtures of structures, and routers.',
    'gates gates.mixtures.spans gates.mixtures.span_weights gates.mixtures.span_mixture '
    'gates.mixtures.structure_mixture gates.routers.Choice gates.routers.top_k '
    'gates.routers.k_best '
    'gates.networks.canonical gates.networks.all_networks gates.networks.num_networks '
    'gates.shares.sum_of_units',
  ),
  'run': (
    'Running',
    'Ways to run a structure, or many at once, and what they are judged by.',
    'run run.tasks.Task run.metrics.Metric run.metrics.MeanMetric run.objectives.CrossEntropy '
    'run.objectives.SigmoidCrossEntropy run.objectives.Squared run.objectives.Absolute '
    'run.objectives.Huber run.ensemble.evaluate_ensemble run.latency.measure_latency '
    'run.latency.Latency run.generation.continued',
  ),
  'train': (
    'Training',
    'A recipe says how a step is taken, a sampler draws its structures, a trainer takes steps.',
    'train.recipe.Recipe train.trainer.Trainer train.recipe.Loss train.recipe.Structures '
    'train.losses.PerSample train.losses.Routed train.losses.Piped train.samplers.Sampler '
    'train.samplers.Uniform train.samplers.Listed train.samplers.Bernoulli train.samplers.Sandwich '
    'train.samplers.KeepRates train.samplers.make_sampler train.population.Population '
    'train.adapters.Adapted train.adapters.Members train.adapters.members '
    'train.balance.Balance train.augment.Crop train.augment.Flip train.augment.Mixup '
    'train.plan.plan train.plan.Plan',
  ),
  'search': ('Searching', 'Good structures under a budget, and what single gates do.', 'search'),
  'data': ('Data', 'Splits of examples, from a name, a file, arrays or an iterator.', 'data'),
  'pretrained': ('Pretrained networks', 'From a directory or a GGUF file, and back.', 'pretrained'),
  'transplant': (
    'Transplants',
    'A small network in a large one and back, and pools that training left.',
    'transplant transplant.restore.Checkpoints transplant.foreign.restore_pool',
  ),
  'compress': (
    'Compression and export',
    'What a network can do without, cut out and written as files.',
    'compress export.export_run compress.exported.export compress.exported.load '
    'compress.exported.coding',
  ),
  'parallel': (
    'Devices',
    'How a pool lies on a mesh of devices, and several processes.',
    'parallel.mesh.make_mesh parallel.placement.Placement parallel.lanes.over_mesh '
    'parallel.layout.pool_specs parallel.processes.distributed',
  ),
  'testing': ('Testing', 'The contract of a network of your own.', 'testing'),
  'report': (
    'Reports',
    'Pages and pictures, for a study of your own.',
    'report.page.Page report.page.section report.page.text report.page.tiles report.page.picture '
    'report.page.table report.page.details report.several.comparison_page report.several.RunFacts '
    'files.runs.read_run files.runs.find_runs files.runs.Run',
  ),
}


def on_files(files, config):
  """Adds the pages to those that lie in the folder."""
  pages = {f'api/{name}.md': _page(*page) for name, page in PAGES.items()}
  pages |= {'api/index.md': _index(), 'options.md': _options()}
  for path, content in pages.items():
    files.append(File.generated(config, path, content=content))
  return files


def _page(title, intro, entries):
  """Returns the page of a room, with a directive for each of its names."""
  lines = [f'# {title}', '', intro, '']
  for name in dict.fromkeys(name for entry in entries.split() for name in _names(entry)):
    lines += [f'::: additive_jax.{name}', '']
  return '\n'.join(lines)


def _names(entry):
  """Returns an entry, or, of a module, the names in its `__all__`, where they are defined."""
  file = _file(entry)
  if not file.exists():
    return [entry]
  tree = ast.parse(file.read_text())
  places = {
    alias.name: f'{node.module.removeprefix("additive_jax.")}.{alias.name}'
    for node in ast.walk(tree)
    if isinstance(node, ast.ImportFrom) and node.module
    for alias in node.names
  }
  public = next(
    (
      [one.value for one in node.value.elts]
      for node in tree.body
      if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__'
    ),
    [],
  )
  return [places.get(name, f'{entry}.{name}') for name in public if name != 'KINDS']


def _index():
  """Returns the page of what `import additive_jax as aj` has, each with its first line."""
  tree = ast.parse((ROOT / 'additive_jax' / '__init__.py').read_text())
  rows = ['# API', '', '`import additive_jax as aj` has these; everything else is in its room.', '']
  rows += ['| name | what it is |', '| --- | --- |']
  shown = {name for _, _, entries in PAGES.values() for e in entries.split() for name in _names(e)}
  found = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module != 'typing':
      for alias in node.names:
        found[alias.name] = f'{node.module.removeprefix("additive_jax").strip(".")}.{alias.name}'
  found |= {'export_run': 'export.export_run'}
  for name, place in sorted(found.items(), key=lambda item: item[0].lower()):
    place = next((one for one in shown if one.endswith(f'.{name}') and one == place), None) or next(
      (one for one in sorted(shown) if one.split('.')[-1] == name), ''
    )
    page = next((key for key in PAGES if key == name), '')
    if place:
      rows.append(f'| [`aj.{name}`][additive_jax.{place}] | {_first_line(place)} |')
    elif page:
      rows.append(f'| [`aj.{name}`]({page}.md) | {PAGES[page][1].splitlines()[0]} |')
  return '\n'.join(rows)


def _first_line(place):
  """Returns the first sentence of what a name says of itself."""
  module, _, name = place.rpartition('.')
  for node in ast.parse(_file(module).read_text()).body:
    if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
      return _first_line(f'{node.module.removeprefix("additive_jax.")}.{name}')
    if getattr(node, 'name', '') == name:
      text = ' '.join((ast.get_docstring(node) or '').split('\n\n')[0].split())
      return re.split(r'(?<=\.) |; |: (?=[^`]*(?:`[^`]*`[^`]*)*$)', text)[0].replace('|', '\\|')
  return ''


def _file(module):
  path = ROOT / 'additive_jax' / module.replace('.', '/')
  return path / '__init__.py' if path.is_dir() else path.with_suffix('.py')


def _options():
  """Returns the page of every option, of the page that is written of their declarations."""
  text = (ROOT / 'configs' / 'default.py').read_text()
  sections, meaning = {'': ('', [])}, []
  for line in text.splitlines():
    if comment := re.fullmatch(r'  # (.*)', line):
      meaning.append(comment[1])
      continue
    if option := re.fullmatch(r'  config\.([\w.]+) = (.*)', line):
      name, value, words = option[1], option[2], ' '.join(meaning)
      if value == 'ConfigDict()' and f'  config.{name}.' in text:
        sections[name] = words, []
      else:
        value = re.sub(r'ConfigDict\(((.*), type_safe=False)?\)', r'\2', value) or '{}'
        section, _, last = name.rpartition('.')
        sections[section][1].append((last, value, words))
    meaning = []
  lines = [
    '# Options',
    '',
    'Every option of a run, with its default. On the command line `--config.NAME=VALUE`, in Python '
    'by name or its last part. [How values are typed](guides/options.md).',
  ]
  for section, (words, rows) in sections.items():
    lines += ['', f'## config{section and "."}{section}', '', words or 'The run as a whole.', '']
    lines += ['| option | default | meaning |', '| --- | --- | --- |']
    for name, value, meant in rows:
      lines.append(f'| `{name}` | `{value}` | {_safe(meant)} |')
  return '\n'.join(lines)


def _safe(text):
  """Returns a text with what Markdown would take for its own, outside of code, as it stands."""
  pieces = text.replace('|', '\\|').split('`')
  pieces[::2] = [re.sub(r'([*<_])', r'\\\1', piece) for piece in pieces[::2]]
  return '`'.join(pieces)
