"""Exp 1."""

from configs import default


def get_config():
  """A residual MLP of 6 unequal blocks on digits: all 64 structures, alone and in one pool."""
  config = default.get_config()
  config.experiment = 'sweep'
  config.num_seeds = 5
  config.learning_rate = 2e-3
  config.model.num_blocks = 6
  config.model.width = 32
  config.model.hidden = (256, 96, 32, 12, 4, 2)
  config.train.epochs = 5.0
  config.train.log_every = 10
  config.train.structures_per_step = 2
  return config
