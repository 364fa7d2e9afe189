"""Additive AI for JAX and Flax: every `+` of a network is a gate, its 2^n structures share one pool
of parameters.
"""

from typing import TYPE_CHECKING, Any

from additive_jax.cli.configs import load_config
from additive_jax.errors import UserError
from additive_jax.version import __version__

if TYPE_CHECKING:
  from additive_jax import data, gates, models, pretrained, transplant
  from additive_jax.experiments.front import cotrain, stochastic, sweep
  from additive_jax.experiments.prune import prune
  from additive_jax.gates.structure import Gate, Space, Structure, all_structures
  from additive_jax.models import Additive, measure
  from additive_jax.run.cascade import Cascade
  from additive_jax.run.evaluate import Evaluation, evaluate_structures
  from additive_jax.run.latency import measure_latency
  from additive_jax.run.metrics import MeanMetric, Metric
  from additive_jax.run.prefix import shared_prefix
  from additive_jax.run.recalibration import recalibrate
  from additive_jax.run.tasks import Task
  from additive_jax.run.ways import chosen, conditional, masked, routed, static
  from additive_jax.search import effects, leave_one_out, search_pool
  from additive_jax.train import samplers
  from additive_jax.train.plan import plan
  from additive_jax.transplant.foreign import restore_pool

  export: Any  # a room above others, which import this one
  export_run: Any

__all__ = [
  'Additive',
  'Cascade',
  'Evaluation',
  'Gate',
  'MeanMetric',
  'Metric',
  'Space',
  'Structure',
  'Task',
  'UserError',
  '__version__',
  'all_structures',
  'chosen',
  'conditional',
  'cotrain',
  'data',
  'effects',
  'evaluate_structures',
  'export',
  'export_run',
  'gates',
  'leave_one_out',
  'load_config',
  'masked',
  'measure',
  'measure_latency',
  'models',
  'plan',
  'pretrained',
  'prune',
  'recalibrate',
  'restore_pool',
  'routed',
  'samplers',
  'search_pool',
  'shared_prefix',
  'static',
  'stochastic',
  'sweep',
  'transplant',
]

# Where each name is. It is imported when it is asked for: JAX takes a second, experiments another,
# which a command that reads run directories need not wait for.
_PLACES = {
  '': ('data', 'export', 'gates', 'models', 'pretrained', 'transplant'),
  'experiments.front': ('cotrain', 'stochastic', 'sweep'),
  'experiments.prune': ('prune',),
  'export': ('export_run',),
  'gates.structure': ('Gate', 'Space', 'Structure', 'all_structures'),
  'models': ('Additive', 'measure'),
  'run.cascade': ('Cascade',),
  'run.evaluate': ('Evaluation', 'evaluate_structures'),
  'run.latency': ('measure_latency',),
  'run.metrics': ('MeanMetric', 'Metric'),
  'run.prefix': ('shared_prefix',),
  'run.recalibration': ('recalibrate',),
  'run.tasks': ('Task',),
  'run.ways': ('chosen', 'conditional', 'masked', 'routed', 'static'),
  'search': ('effects', 'leave_one_out', 'search_pool'),
  'train': ('samplers',),
  'train.plan': ('plan',),
  'transplant.foreign': ('restore_pool',),
}
_LATER = {name: place for place, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
  if name not in _LATER:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  from importlib import import_module

  if not _LATER[name]:
    return import_module(f'additive_jax.{name}')
  value = getattr(import_module(f'additive_jax.{_LATER[name]}'), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted(set(globals()) | set(_LATER))
