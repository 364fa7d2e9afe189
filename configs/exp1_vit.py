"""Exp 1 on a vision transformer: all 64 structures of 3 layers, attention and feed-forward gates.

python -m additive_jax.launch --config=configs/exp1_vit.py
"""

from configs import default


def get_config():
  """The options of Exp 1 on a ViT."""
  config = default.get_config()
  config.experiment = 'sweep'
  config.data.name, config.model.patch_size = default.images()
  config.data.train_examples = 1437
  config.data.test_examples = 360
  config.model.name = 'transformer'
  config.model.num_blocks = 3
  config.model.width = 32
  config.model.num_heads = 2
  config.model.hidden = (64,)
  config.learning_rate = 2e-3
  config.train.epochs = 10.0
  config.train.batch_size = 64
  config.train.structures_per_step = 2
  return config
