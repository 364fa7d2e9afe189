"""Compression per unit: LeNet-300-100 loses hidden units by variational dropout, and is cut out.

  python -m additive_jax.launch --config=configs/compress_units.py
"""

from configs import compress


def get_config():
  """The options of a compression per unit."""
  config = compress.get_config()
  config.compress.level = 'unit'
  config.compress.epochs = 20.0
  config.compress.tune_epochs = 20.0
  config.compress.kl = 0.1
  config.compress.log_variance = -8.0
  config.compress.sparsities = (0.25, 0.5, 0.9)
  return config
