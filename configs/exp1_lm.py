"""Exp 1 on a byte language model: all 64 structures of 3 layers, attention and feed-forward gates.

python -m additive_jax.launch --config=configs/exp1_lm.py
"""

from configs import default


def get_config():
  """The options of Exp 1 on bytes."""
  config = default.get_config()
  config.experiment = 'sweep'
  config.data.name = 'stdlib'
  config.data.sequence_length = 32
  config.data.train_examples = 16384
  config.data.test_examples = 1024
  config.model.name = 'transformer'
  config.model.num_blocks = 3
  config.model.width = 32
  config.model.num_heads = 4
  config.model.hidden = (64,)
  config.model.positions = 'rope'
  config.model.unit = 'swiglu'
  config.learning_rate = 4e-3
  config.train.epochs = 1.0
  config.train.batch_size = 32
  config.train.structures_per_step = 2
  config.sweep.shared_epochs = 4.0
  return config
