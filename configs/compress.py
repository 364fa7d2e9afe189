"""Compression per weight: LeNet-300-100 by sparse variational dropout, beside magnitude pruning.

  python -m additive_jax.launch --config=configs/compress.py
"""

from configs import default


def get_config():
  """The options of a compression per weight."""
  config = default.get_config()
  config.experiment = 'compress'
  config.num_seeds = 3
  config.data.name, _ = default.images()
  config.model.name = 'dense_stack'
  config.model.gates = ('sub_activation',)
  config.model.num_chunks = 2
  config.model.hidden = (300, 100)
  config.learning_rate = 2e-3
  config.schedule.name = 'linear_schedule'
  config.schedule.kwargs = {'end_value': 0.0, 'transition_steps': 1.0}
  config.train.epochs = 10.0
  config.train.batch_size = 250
  config.train.structures_per_step = 1
  config.train.log_every = 240
  config.train.checkpoint_every = 1200
  config.compress.level = 'weight'
  config.compress.epochs = 20.0
  config.compress.tune_epochs = 20.0
  config.compress.kl = 12.0
  config.compress.ramp = 0.8
  config.compress.log_variance = -10.0
  config.compress.variance_rate = 10.0
  config.compress.sparsities = (0.9, 0.99)
  return config
