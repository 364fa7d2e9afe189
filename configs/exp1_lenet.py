"""Exp 1 on LeNet-5: the 16 structures of the sub-activation gates of its two pairs of layers.

  additive-jax --config=exp1_lenet

Two gates join three chunks in each pair, so 16 structures; 1,437 training and 360 test images.

Time: 10 min on 2 CPU cores that much other work shared, compile included (48 trainings, 3 pools; 5
min 17 s of CPU time).
Result (Fashion-MNIST, seeds 0–2): best 1111, which is all-on, loss 0.474, accuracy 0.843. Noise
ceiling of the mean over the seeds τ 0.68 (0.51 between single seeds). Shared against standalone: τ
0.600 (0.310 to 0.823), 0.88 of the ceiling; top-4 recall 1 (random 0.25), regret 0 (random 0.004).

The figures are those of --config.data.valid=0.0, with nothing held out to choose by.
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
