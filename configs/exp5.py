"""Exp 5 on images: an MLP started from narrow and shallow ones."""

from configs import default


def get_config():
  """The options of Exp 5 on images."""
  config = default.get_config()
  config.experiment = 'booster'
  config.num_seeds = 5
  config.learning_rate = 5e-4
  config.clip_norm = 1.0
  name, _ = default.images()
  epochs = 2.0 if name != 'digits' else 50.0
  config.data.name = name
  config.data.train_examples = 38400 if name != 'digits' else 0
  config.data.test_examples = 5000 if name != 'digits' else 0
  config.model.num_blocks = 6
  config.model.width = 256
  config.model.hidden = (512,)
  config.train.epochs = epochs
  config.train.batch_size = 64
  config.train.structures_per_step = 1
  config.schedule.name = 'warmup_cosine_decay_schedule'
  config.schedule.kwargs = {'warmup_steps': 0.02, 'decay_steps': 1.0}
  config.booster.structure = '100100'
  config.booster.epochs = epochs
  config.booster.large_epochs = 0.55 * epochs
  config.booster.learning_rate = 1e-3
  config.booster.large_learning_rate = 2.5e-4
  config.booster.sync_epochs = epochs / 300
  return config
