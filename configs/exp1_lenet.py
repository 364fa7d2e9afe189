"""Exp 1 on LeNet-5: the 16 structures of the sub-activation gates of its two pairs of layers.

  additive-jax --config=exp1_lenet

Two gates join three chunks in each pair, so 16 structures; 1,437 training images.

Time: about 6 CPU minutes, compile included (48 trainings, 3 pools; stopped once, and resumed).
Result (Fashion-MNIST, seeds 0–2; ranked on 10,000 validation images, reported on 360 test images):
best 1111, which is all-on, loss 0.493, accuracy 0.829. Noise ceiling of the mean over the seeds τ
0.79 (0.66 between single seeds). Shared against standalone: τ 0.783 (0.541 to 0.964), the ceiling
but for 0.003; top-4 recall 1 (random 0.25), regret 0 (random 0.006). Ranked on 360 test images,
with --config.data.valid=0.0, τ was 0.600 of a ceiling of 0.68.
"""

from additive_jax.configs import default


def get_config():
  """The options of Exp 1 on LeNet-5."""
  config = default.get_config()
  config.experiment = 'sweep'
  config.data.name, _ = default.images()
  if config.data.name != 'digits':
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
