"""Exp 5 on images: an MLP started from narrow and shallow ones.

  additive-jax --config=exp5

6 blocks, D=256, H=512, on 38,400 images of Fashion-MNIST where the Debian package
dataset-fashion-mnist is installed, else on digits; twice over (1,200 steps); or copies of half the
width with 2 of the blocks, all together twice over, and then the large model for 660 steps. Four
copies share a batch of 64 and are averaged every 5 steps.

Time: 12 min on one core, compile included.
Result (Fashion-MNIST, seeds 0–4, 5,000 test images; ± is half the 95 % interval over the seeds;
TFLOPs of the whole training, clustering included; saved: until the lowest loss that training from
scratch has, in brackets by seed):

  start                TFLOPs  test loss      accuracy  FLOPs saved at equal loss, %
  from scratch           0.83  0.340 ± 0.006  0.879
  4 on clusters          0.57  0.335 ± 0.002  0.880     (43, 44, 37, 38; not reached by seed 4)
  4 on a random split    0.56  0.336 ± 0.003  0.880     (45, 45, 33, 37; not reached by seed 4)
  one narrow             0.56  0.333 ± 0.002  0.880     44.7 ± 7.4 (48, 52, 36, 45, 42)
  untrained              0.46  0.386 ± 0.007  0.862     not reached

With all 60,000 images to draw from (--config.data.valid=0.0) every seed got there: 42.8 ± 1.4 % on
clusters, 43.4 ± 2.2 % on a random split, 45.0 ± 2.2 % from one.

Rates and lengths were tried on seeds 0 to 2; docs/benchmarks.md has what else was tried.
"""

from additive_jax.configs import default


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
