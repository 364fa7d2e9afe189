"""Exp 5 on bytes: a transformer started from narrow ones."""

from configs import default


def get_config():
  """The options of Exp 5 on bytes."""
  config = default.get_config()
  config.experiment = 'booster'
  config.num_seeds = 3
  config.learning_rate = 2e-3
  config.clip_norm = 1.0
  config.data.name = 'stdlib'
  config.data.sequence_length = 64
  config.data.train_examples = 9600
  config.data.test_examples = 256
  config.model.name = 'transformer'
  config.model.num_blocks = 4
  config.model.width = 128
  config.model.hidden = (512,)
  config.model.num_heads = 4
  config.model.positions = 'rope'
  config.train.epochs = 1.0
  config.train.batch_size = 16
  config.train.structures_per_step = 1
  config.schedule.name = 'warmup_cosine_decay_schedule'
  config.schedule.kwargs = {'warmup_steps': 0.04, 'decay_steps': 1.0}
  config.booster.epochs = 1.0
  config.booster.large_epochs = 0.36
  config.booster.learning_rate = 4e-3
  config.booster.lone_learning_rate = 4e-3
  config.booster.sync_epochs = 0.005
  return config
