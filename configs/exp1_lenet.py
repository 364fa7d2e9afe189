"""Exp 1 on LeNet-5: the 32 structures of the sub-activation gates of its two pairs of layers.

python -m additive_jax.launch --config=configs/exp1_lenet.py
"""

from configs import default


def get_config():
  """The options of Exp 1 on LeNet-5."""
  config = default.get_config()
  config.experiment = 'sweep'
  config.data.name, _ = default.images()
  config.data.train_examples = 1437
  config.data.test_examples = 360
  config.model.name = 'lenet'
  config.model.gates = ('sub_activation',)
  config.model.num_chunks = 3
  config.learning_rate = 2e-3
  config.train.epochs = 8.0
  config.train.batch_size = 64
  config.train.structures_per_step = 2
  return config
