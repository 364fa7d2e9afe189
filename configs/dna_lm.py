"""DNA on bytes."""

from configs import default


def get_config():
  """The options of DNA on bytes."""
  config = default.get_config()
  config.experiment = 'dna'
  config.num_seeds = 3
  config.learning_rate = 3e-3
  config.data.name = 'stdlib'
  config.data.sequence_length = 64
  config.data.train_examples = 6400
  config.data.test_examples = 512
  config.model.name = 'transformer'
  config.model.num_blocks = 5
  config.model.width = 64
  config.model.hidden = (256,)
  config.model.num_heads = 4
  config.model.positions = 'rope'
  config.model.unit = 'swiglu'
  config.train.epochs = 1.0
  config.train.batch_size = 16
  config.train.structures_per_step = 1
  config.balance.bias_rate = 0.01
  return config
