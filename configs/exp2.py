"""Exp 2."""

from configs import default


def get_config():
  """A residual MLP of 6 equal blocks on digits: 4 of its 64 structures in one pool."""
  config = default.get_config()
  config.experiment = 'cotrain'
  config.num_seeds = 5
  config.model.num_blocks = 6
  config.model.width = 64
  config.model.hidden = (128,)
  config.cotrain.top_k = 4
  return config
