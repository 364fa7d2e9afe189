"""Compression per unit: LeNet-300-100 loses hidden units by variational dropout, and is cut out.

  python -m additive_jax.launch --config=configs/compress_units.py
"""

from configs import compress


def get_config():
  """The options of a compression per unit."""
  config = compress.get_config()
  config.compress.level = 'unit'
  config.compress.epochs = 12.0
  config.compress.tune_epochs = 28.0
  config.compress.kl = 0.35
  config.compress.log_variance = -5.0
  config.compress.variance_rate = 20.0
  config.compress.sparsities = (0.75,)
  return config
