"""Prune: the smaller network within a small language model that the run trains itself.

additive-jax --config=prune
"""

from additive_jax.configs import default


def get_config():
  """The options of a pruning on bytes of the standard library."""
  config = default.get_config()
  config.experiment = 'prune'
  config.num_seeds = 1
  config.learning_rate = 3e-3
  config.data.name = 'stdlib'
  config.data.sequence_length = 64
  config.data.train_examples = 8192
  config.data.valid_examples = 512
  config.data.test_examples = 512
  config.model.name = 'transformer'
  config.model.num_blocks = 8
  config.model.width = 64
  config.model.hidden = (256,)
  config.model.num_heads = 4
  config.model.positions = 'rope'
  config.train.epochs = 2.0
  config.train.batch_size = 32
  config.train.structures_per_step = 1
  config.train.log_every = 32
  config.sampler.name = 'bernoulli'
  config.sampler.keep_rate = 1.0
  config.prune.budget = 0.7
  config.prune.cost = 'params'
  config.prune.of = 'gates'
  config.prune.method = 'surrogate'
  config.prune.baselines = ('greedy', 'leave_one_out', 'cosine', 'random')
  config.prune.sets = 3
  config.prune.calibration_examples = 64
  config.prune.candidates = 3
  config.prune.heal_epochs = 0.5
  return config
