"""Additive AI for JAX and Flax: every `+` of a network is a gate, its 2^n structures share one pool
of parameters.
"""

from additive_jax import data, gates, models, transplant
from additive_jax.cli.configs import load_config
from additive_jax.errors import UserError
from additive_jax.gates.structure import Gate, Space, Structure, all_structures
from additive_jax.models import Additive, measure
from additive_jax.run.evaluate import Evaluation, evaluate_structures
from additive_jax.run.metrics import MeanMetric, Metric
from additive_jax.run.prefix import shared_prefix
from additive_jax.run.recalibration import recalibrate
from additive_jax.run.tasks import Task
from additive_jax.run.ways import chosen, conditional, masked, routed, static
from additive_jax.train import samplers
from additive_jax.train.plan import plan
from additive_jax.transplant.foreign import restore_pool
from additive_jax.version import __version__

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
  'data',
  'evaluate_structures',
  'gates',
  'load_config',
  'masked',
  'measure',
  'models',
  'plan',
  'recalibrate',
  'restore_pool',
  'routed',
  'samplers',
  'shared_prefix',
  'static',
  'transplant',
]
