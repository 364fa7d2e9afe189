"""Exp 5 on bytes: a transformer started from narrow ones.

  additive-jax --config=exp5_lm

4 layers, D=128, H=512, on 9,600 sequences of 64 bytes of the standard library, once over (600
steps); or narrow copies of half the width, all together once over, and then the large model for 216
steps. Four copies share a batch of 16 and are averaged every 3 steps.

Time: 15 CPU minutes (20 min on one core that other work shared), compile included.
Result (seeds 0–2, 256 test sequences, nats a byte; ± is half the 95 % interval over the seeds;
TFLOPs of the whole training, clustering included; saved: until the lowest loss that training from
scratch has):

  start                TFLOPs  test loss      accuracy  FLOPs saved at equal loss, %
  from scratch           3.33  1.618 ± 0.027  0.573
  4 on clusters          2.15  1.587 ± 0.012  0.582     44.5 ± 6.3
  4 on a random split    2.14  1.596 ± 0.029  0.578     42.9 ± 10.3
  one narrow             2.14  1.565 ± 0.021  0.585     51.0 ± 6.5
  untrained              1.20  2.188 ± 0.091  0.442     not reached

Of the time that training from scratch takes to that loss, 86 s on one core, 30 ± 21 %, 32 ± 18 %
and 38 ± 11 % are saved, copies trained in turn.

Rates and lengths were tried on seed 0; docs/benchmarks.md has what else was tried.
"""

from additive_jax.configs import default


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
