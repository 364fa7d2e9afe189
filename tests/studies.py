"""A small run of every study, made once for all tests that look at it."""

import contextlib
import fcntl
from typing import NamedTuple

import pictures
import tiny

from additive_jax.experiments.studies import STUDIES


class Case(NamedTuple):
  """Options of a study's run beside those of `tiny.SMALL`, and its devices."""

  options: dict
  devices: int = 1


# Images of 4 tokens, 6 steps of one structure.
IMAGES = {
  'data.name': 'digits',
  'data.train_examples': 48,
  'data.test_examples': 40,
  'model.name': 'transformer',
  'model.patch_size': 4,
  'model.num_blocks': 1,
  'model.width': 8,
  'model.num_heads': 2,
  'model.hidden': (24,),
  'model.num_chunks': 3,
  'train.epochs': 1.0,
  'train.batch_size': 8,
  'train.structures_per_step': 1,
  'train.log_every': 3,
}
CASES = {
  'sweep': Case({}, devices=2),
  'cotrain': Case({'structures': ('011', '111')}, devices=2),
  'stochastic': Case(
    {
      'sampler.name': 'bernoulli',
      'sampler.keep_ramp': 'linear',
      'sampler.ramp': 0.5,
      'sampler.ramp_shape': 'step',
      'stochastic.rescale': 'inverse',
      'train.structures_per_step': 1,
    }
  ),
  'experts': Case(
    IMAGES
    | {
      'experts.variants': ('softmax', 'single', 'moe'),
      'experts.budgets': ('params',),
      'experts.keep': 0.6,
      'experts.num_experts': 3,
    }
  ),
  'dna': Case(
    IMAGES
    | {
      'num_seeds': 1,
      'model.num_blocks': 2,
      'dna.num_backbone': 1,
      'dna.num_steps': 2,
      'dna.attention': 1,
      'dna.mlp': 1,
      'dna.identity': 1,
      'dna.top_k': 2,
      'dna.examples': 36,
      'balance.bias_rate': 0.01,
    }
  ),
  # 120 rows of a table, the first and third of three blocks, two copies of 8 examples a step.
  'booster': Case(
    {
      'train.structures_per_step': 1,
      'train.log_every': 4,
      'train.checkpoint_every': 4,
      'booster.num_models': 2,
      'booster.structure': '101',
      'booster.epochs': 1.0,
      'booster.large_epochs': 1.0,
      'booster.sync_epochs': 0.25,
      'booster.features': 'embedding',
      'booster.embedding_epochs': 0.2,
    }
  ),
  # 64 images, 8 steps, then 16 under noise and 8 of what is left.
  'compress': Case(
    {
      'data.name': 'digits',
      'data.train_examples': 64,
      'data.test_examples': 48,
      'model.name': 'dense_stack',
      'model.gates': ('sub_activation',),
      'model.num_chunks': 2,
      'model.hidden': (12, 8),
      'num_seeds': 1,
      'learning_rate': 1e-2,
      'train.epochs': 1.0,
      'train.batch_size': 8,
      'train.structures_per_step': 1,
      'train.log_every': 4,
      'train.checkpoint_every': 4,
      'compress.epochs': 2.0,
      'compress.tune_epochs': 1.0,
      'compress.kl': 2.0,
      'compress.ramp': 0.2,
      'compress.log_variance': -1.0,
      'compress.variance_rate': 40.0,
      'compress.sparsities': (0.6,),
    }
  ),
}


def config(name, options=()):
  """The config of a study's run, with other options on top."""
  return tiny.config(name, CASES[name].options | dict(options))


def run(name, workdir, options=(), devices=0):
  """The result of the study's run in a directory of one's own."""
  return STUDIES[name].run(config(name, options), workdir, devices=devices or CASES[name].devices)


def finished(name, tmp_path_factory):
  """The result and the directory of the study's run, which nobody changes.

  Test files and their processes share it: the first that asks makes it.
  """
  root = tiny.shared_folder(tmp_path_factory)
  (root / 'studies').mkdir(exist_ok=True)
  with (
    open(root / 'studies' / f'{name}.lock', 'w') as file,
    programs(root / 'programs'),
    pictures.drawn(),
  ):
    fcntl.flock(file, fcntl.LOCK_EX)
    return run(name, root / 'studies' / name), root / 'studies' / name


@contextlib.contextmanager
def programs(folder):
  """Keeps compiled programs, and makes few of them."""
  with tiny.cached_programs(folder), tiny.two_sizes():
    yield
