"""Options that a run was given and does not use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from typing import Any

from additive_jax.data import Data
from additive_jax.experiments.network import NETWORKS
from additive_jax.experiments.options import DECLARED, Options, value_of
from additive_jax.models import Transformer
from additive_jax.models.kinds import LANE, SUB_ACTIVATION

# The sections that belong to some experiments.
OF = {
  'sweep': ('sweep',),
  'search': ('sweep', 'cotrain'),
  'cotrain': ('cotrain',),
  'structures': ('cotrain',),
  'structures_from': ('cotrain',),
  'sampler': ('sweep', 'cotrain', 'stochastic', 'experts', 'prune'),
  'stochastic': ('stochastic',),
  'experts': ('experts',),
  'balance': ('experts', 'dna'),
  'dna': ('dna',),
  'booster': ('booster',),
  'compress': ('compress',),
  'prune': ('prune',),
}
EXPERIMENTS = ('sweep', 'cotrain', 'stochastic', 'experts', 'dna', 'booster', 'compress', 'prune')
OF_TABLES = tuple(f'data.{name}' for name in ('target', 'columns', 'weight', 'split', 'task'))
OF_FOLDERS = ('data.image_size', 'data.channels')
AUGMENTS = tuple(f'data.{name}' for name in ('augment', 'crop_pixels', 'flip_rate', 'mixup_alpha'))
# Options in whose place something may be given in Python, by what it is called there.
IN_PLACE: dict[str, Callable[[str], bool]] = {
  'model': lambda name: name.startswith('model.'),
  'data': lambda name: name.startswith('data.') and name not in AUGMENTS,
  'augment': lambda name: name in AUGMENTS,
  'loss': lambda name: name == 'task.loss',
  'metrics': lambda name: name == 'task.metrics',
  'optimizer': lambda name: (
    name in ('learning_rate', 'clip_norm') or name.startswith(('optimizer.', 'schedule.'))
  ),
}
# What a network takes under another name, or reads of options by itself.
ALSO = {Transformer: ('num_blocks',)}


def _given(o):
  """Whether the structures to co-train are given."""
  return bool(o.structures or o.structures_from)


def _has_pool(o):
  """Whether a pool is trained on structures that a sampler draws."""
  match o.experiment:
    case 'sweep':
      return 'shared' in o.sweep.modes
    case 'cotrain':
      return not _given(o)
    case 'experts':
      return 'single' in o.experts.variants
  return True


def _trains_pools(o):
  """Whether anything is trained by more than itself alone."""
  return o.experiment != 'sweep' or 'shared' in o.sweep.modes


def _several(o):
  """Whether narrow copies share a batch."""
  return o.booster.num_models > 1 and bool({'clusters', 'random_split'} & set(o.booster.variants))


Used = Callable[[Options], bool]
BERNOULLI = "config.sampler.name 'bernoulli'"
POOLS = 'pools, not structures alone'
PIPELINE = 'config.train.pipe_devices above 1'
# Options that a run uses only with others, when, and in words.
WHEN: dict[str, tuple[Used, str]] = {
  'schedule.kwargs': (lambda o: o.schedule.name != 'constant', 'other schedules than constant'),
  'booster.schedule.kwargs': (
    lambda o: o.booster.schedule.name != 'constant',
    'other schedules than constant',
  ),
  'model.num_chunks': (
    lambda o: SUB_ACTIVATION in o.model.gates or o.experiment == 'experts',
    'sub_activation among config.model.gates',
  ),
  'model.num_lanes': (lambda o: LANE in o.model.gates, 'lane among config.model.gates'),
  'train.structures_per_step': (
    lambda o: _trains_pools(o) and not (o.experiment == 'cotrain' and _given(o)),
    'pools of structures that are not given',
  ),
  **dict.fromkeys(
    ('train.shared_batch', 'train.average', 'train.collective', 'train.zero', 'train.offload'),
    (_trains_pools, POOLS),
  ),
  **dict.fromkeys(
    ('train.log_every', 'train.checkpoint_every', 'train.pipe_devices', 'train.fsdp_devices'),
    (_trains_pools, POOLS),
  ),
  'train.tensor_devices': (_trains_pools, POOLS),
  'train.expert_devices': (_trains_pools, POOLS),
  'train.distill': (
    lambda o: o.experiment not in ('booster', 'compress') and _trains_pools(o),
    'pools of several structures',
  ),
  **dict.fromkeys(
    ('train.microbatches', 'train.pipe_schedule', 'train.pipe_repeats'),
    (lambda o: o.train.pipe_devices > 1, PIPELINE),
  ),
  'train.epochs': (
    lambda o: o.experiment != 'sweep' or 'standalone' in o.sweep.modes or not o.sweep.shared_epochs,
    'structures alone, or config.sweep.shared_epochs 0',
  ),
  'task.rank_by': (
    lambda o: o.experiment in ('sweep', 'cotrain', 'stochastic', 'experts', 'prune'),
    'experiments that rank structures',
  ),
  'sampler.name': (_has_pool, 'a pool of structures that are drawn'),
  'sampler.structures': (
    lambda o: o.sampler.name in ('fixed', 'listed') and _has_pool(o),
    "config.sampler.name 'fixed' or 'listed'",
  ),
  'sampler.gate_keep_rates': (lambda o: o.sampler.name == 'bernoulli' and _has_pool(o), BERNOULLI),
  'sampler.ramp': (
    lambda o: o.sampler.name in ('bernoulli', 'progressive') and _has_pool(o),
    f"{BERNOULLI} or 'progressive'",
  ),
  **dict.fromkeys(
    ('sampler.keep_rate', 'sampler.keep_ramp'),
    (
      lambda o: o.sampler.name == 'bernoulli' and not o.sampler.gate_keep_rates and _has_pool(o),
      f'{BERNOULLI} without config.sampler.gate_keep_rates',
    ),
  ),
  'sampler.ramp_shape': (
    lambda o: o.sampler.name == 'bernoulli' and o.sampler.ramp > 0 and _has_pool(o),
    f'{BERNOULLI} and config.sampler.ramp above 0',
  ),
  **dict.fromkeys(
    ('sweep.shared_epochs', 'sweep.split_after'), (_has_pool, "'shared' among config.sweep.modes")
  ),
  **dict.fromkeys(
    ('sweep.halving', 'sweep.keep_alone'),
    (lambda o: 'standalone' in o.sweep.modes, "'standalone' among config.sweep.modes"),
  ),
  'sweep.rungs': (lambda o: o.sweep.halving > 0, 'config.sweep.halving above 0'),
  'search.method': (_has_pool, 'a pool of structures that are drawn'),
  **dict.fromkeys(
    ('search.budget', 'search.population'),
    (lambda o: bool(o.search.method) and _has_pool(o), 'config.search.method'),
  ),
  'cotrain.sweep_epochs': (
    lambda o: o.experiment == 'sweep' or not _given(o),
    'structures that are not given',
  ),
  **dict.fromkeys(
    ('stochastic.stages', 'stochastic.parts'),
    (
      lambda o: 'per_sample' in o.stochastic.modes,
      "'per_sample' among config.stochastic.modes",
    ),
  ),
  'data.crop_pixels': (lambda o: 'crop' in o.data.augment, 'crop among config.data.augment'),
  'data.flip_rate': (lambda o: 'flip' in o.data.augment, 'flip among config.data.augment'),
  'data.mixup_alpha': (lambda o: 'mixup' in o.data.augment, 'mixup among config.data.augment'),
  'experts.structures': (
    lambda o: bool({'softmax', 'random'} & set(o.experts.variants)),
    "'softmax' or 'random' among config.experts.variants",
  ),
  **dict.fromkeys(
    ('experts.num_experts', 'experts.expert_top_k'),
    (lambda o: 'moe' in o.experts.variants, "'moe' among config.experts.variants"),
  ),
  'experts.num_structures': (
    lambda o: 'single' in o.experts.variants,
    "'single' among config.experts.variants",
  ),
  'balance.keep_rate': (
    lambda o: o.experiment == 'experts' and o.experts.keep < 1,
    'config.experts.keep below 1',
  ),
  'booster.learning_rate': (_several, 'several narrow copies'),
  'booster.join': (_several, 'several narrow copies'),
  'booster.sync_epochs': (
    lambda o: _several(o) and not o.booster.asynchronous,
    'several narrow copies that are not config.booster.asynchronous',
  ),
  'booster.lone_learning_rate': (
    lambda o: 'one_narrow' in o.booster.variants or o.booster.num_models == 1,
    "'one_narrow' among config.booster.variants",
  ),
  **dict.fromkeys(
    ('booster.features', 'booster.balanced'),
    (lambda o: 'clusters' in o.booster.variants, "'clusters' among config.booster.variants"),
  ),
  'booster.embedding_epochs': (
    lambda o: 'clusters' in o.booster.variants and o.booster.features == 'embedding',
    "config.booster.features 'embedding'",
  ),
  'booster.quorum': (lambda o: o.booster.asynchronous, 'config.booster.asynchronous True'),
  **dict.fromkeys(
    ('prune.teacher', 'prune.temperature', 'prune.alone', 'prune.candidates', 'train.low_rank'),
    (
      lambda o: o.experiment != 'prune' or o.prune.heal_epochs > 0,
      'config.prune.heal_epochs above 0',
    ),
  ),
  'prune.dtype': (lambda o: bool(o.pretrained), 'a pretrained network'),
  'compress.inputs': (lambda o: o.compress.level == 'unit', "config.compress.level 'unit'"),
  'compress.scope': (lambda o: o.compress.level != 'unit', 'other levels than units'),
  **dict.fromkeys(
    ('compress.gradual_epochs', 'compress.gradual_share', 'compress.gradual_rate'),
    (lambda o: bool(o.compress.gradual), 'shares in config.compress.gradual'),
  ),
  **dict.fromkeys(
    ('compress.temperature', 'compress.teacher_epochs'),
    (lambda o: o.compress.distill > 0, 'config.compress.distill above 0'),
  ),
}


def unused(options: Options, data: Data, given: Collection[str] = ()) -> Iterator[tuple[str, str]]:
  """Yields every option that is not at its default and that the run does not use, by its dotted
  name, and what it is for.

  Args:
    options: those of a run.
    data: its data.
    given: what the run was given in Python in place of options, keys of `IN_PLACE`.

  >>> from additive_jax.experiments.options import replaced
  >>> options = replaced(Options(experiment='cotrain'), {'dna.top_k': 3, 'sampler.keep_rate': 0.7})
  >>> for name, what in unused(options, aj.data.load('digits')):
  ...   print(name, 'is for', what)
  sampler.keep_rate is for config.sampler.name 'bernoulli' without config.sampler.gate_keep_rates
  dna.top_k is for config.experiment 'dna'
  """
  if options.experiment not in EXPERIMENTS:  # a study of one's own
    return
  default = Options()
  for name in DECLARED:
    changed = value_of(options, name) != value_of(default, name)
    if not changed or (name == 'model.kwargs' and options.pretrained):
      continue
    if name == 'prune.dtype' and 'pretrained' in given:
      continue
    instead = [key for key in given if key in IN_PLACE and IN_PLACE[key](name)]
    what = f'runs without {instead[0]}=' if instead else _purpose(name, options, data)
    if what:
      yield name, what


def _purpose(name: str, options: Options, data: Data) -> str:
  """What an option is for that a run does not use; '' for one that it uses."""
  experiments = OF.get(name.partition('.')[0], EXPERIMENTS)
  if options.experiment not in experiments:
    return 'config.experiment ' + ' or '.join(map(repr, experiments))
  if name.startswith('model.'):
    what = _of_network(name.removeprefix('model.'), options.model, data)
  else:
    what = _of_data(name, options.data, data)
  used, words = WHEN.get(name, (lambda o: True, ''))
  return what or ('' if used(options) else words)


def _of_network(field: str, model: Any, data: Data) -> str:
  if field in ('name', 'kwargs'):
    return ''
  if model.name not in NETWORKS:
    return 'networks of the library; one of your own is made with config.model.kwargs'
  if field == 'patch_size' and data.task_name == 'language':
    return 'images'
  takes = lambda kind: {f.name for f in dataclasses.fields(kind)} | set(ALSO.get(kind, ()))
  if field in takes(NETWORKS[model.name][0]):
    return ''
  others = [name for name, (kind, _) in NETWORKS.items() if field in takes(kind)]
  return f'config.model.name {" or ".join(map(repr, others))}'


def _of_data(name: str, options: Any, data: Data) -> str:
  if name == 'data.sequence_length' and data.task_name != 'language':
    return 'text'
  if name in ('data.data_dir', 'data.download') and not options.name.startswith('tfds:'):
    return 'tfds:NAME'
  if name in OF_TABLES and not options.name.startswith('file:'):
    return 'file:PATH'
  if name in OF_FOLDERS and not options.name.startswith('images:'):
    return 'images:DIR'
  if name == 'data.valid_examples' and data.valid is None:
    return 'a split to choose by, config.data.valid other than 0'
  return ''
