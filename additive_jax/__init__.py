"""Additive AI for JAX and Flax: every `+` of a network is a gate, its 2^n structures share one pool
of parameters.
"""

from typing import TYPE_CHECKING, Any

from additive_jax import data, gates, models, transplant
from additive_jax.cli.configs import load_config
from additive_jax.errors import UserError
from additive_jax.gates.structure import Gate, Space, Structure, all_structures
from additive_jax.models import Additive, measure
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
from additive_jax.version import __version__

if TYPE_CHECKING:
  from additive_jax import pretrained

  export: Any  # a room above others, which import this one
  export_run: Any
  from additive_jax.experiments.front import cotrain, stochastic, sweep
  from additive_jax.experiments.prune import prune

__all__ = [
  'Additive',
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

# Experiments take seconds to import, which only those who run one should pay.
_LATER = {
  'cotrain': 'experiments.front',
  'export': '',
  'export_run': 'export',
  'pretrained': '',
  'prune': 'experiments.prune',
  'stochastic': 'experiments.front',
  'sweep': 'experiments.front',
}


def __getattr__(name: str) -> Any:
  if name not in _LATER:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  from importlib import import_module

  if not _LATER[name]:
    return import_module(f'additive_jax.{name}')
  return getattr(import_module(f'additive_jax.{_LATER[name]}'), name)


def __dir__() -> list[str]:
  return sorted(set(globals()) | set(_LATER))
