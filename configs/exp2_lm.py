"""Exp 2 on a byte language model: the best 4 of 64 structures of 3 layers, trained in one pool.

python -m additive_jax.launch --config=configs/exp2_lm.py
"""

from configs import exp1_lm


def get_config():
  """The options of Exp 2 on bytes."""
  config = exp1_lm.get_config()
  config.experiment = 'cotrain'
  config.cotrain.top_k = 4
  config.cotrain.sweep_epochs = 1.0
  return config
