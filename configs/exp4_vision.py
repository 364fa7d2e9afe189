"""Exp 4 on images: tokens choose among the structures of a layer."""

from configs import default


def get_config():
  """The options of Exp 4 on images."""
  config = default.get_config()
  config.experiment = 'experts'
  config.num_seeds = 3
  config.learning_rate = 3e-3
  name, patch_size = default.images()
  config.data.name = name
  config.data.train_examples = 4800 if name != 'digits' else 0
  config.data.test_examples = 1024 if name != 'digits' else 0
  config.model.name = 'transformer'
  config.model.patch_size = patch_size
  config.model.num_blocks = 2
  config.model.width = 48
  config.model.hidden = (96,)
  config.model.num_chunks = 3
  config.model.num_heads = 4
  config.train.epochs = 2.0
  config.train.batch_size = 32
  config.train.structures_per_step = 1
  config.experts.renormalise = True
  return config
