"""Compression per weight: LeNet-300-100 by sparse variational dropout, beside magnitude pruning.

  additive-jax --config=compress --devices=1

The images of Fashion-MNIST where the Debian package dataset-fashion-mnist is installed, else
digits; --config.data.name=idx:DIR takes any folder in the format of MNIST. Ten epochs of a dense
network, from which all start; then 130 more: dense, or 80 with noise and 50 of what that leaves, or
130 of what magnitude pruning leaves. What is left learns from a teacher, the dense network after 40
epochs more, with a weight of 0.9. Adam, a learning rate that falls from 2e-3 to 0 each time.

Time: 38 CPU minutes (47 min on one core that other work shared).
Result (Fashion-MNIST, 50,000 of its training images to learn from, seeds 0–2, 10,000 test images; ±
is half the 95 % interval over the seeds; points lost are paired by seed; FLOPs are those of the
network without the units and inputs that no weight reads, cut out):

  network                    weights  fewer         accuracy  points lost   FLOPs  test loss
  dense                      266,200                0.8946                  533 k  1.174
  its teacher of 50 epochs   266,200                0.8946    0.00 ± 0.86   533 k  0.507
  variational dropout          5,943  44.9× ± 5.6   0.8822    1.24 ± 0.62   132 k  0.433
    before it is tuned         5,943  44.9× ± 5.6   0.8702    2.44 ± 0.75   132 k  0.412
  magnitude, as many           5,943  44.9× ± 5.6   0.8680    2.66 ± 1.11   257 k  0.481
  magnitude, 90 % removed     26,620  10.0×         0.8851    0.95 ± 0.57   532 k  0.580
  magnitude, 99 % removed      2,662  100.0×        0.8470    4.76 ± 1.66   128 k  0.526

The target, 40 times fewer weights at 0.5 points lost, is missed by 0.7 points. Pruning by magnitude
loses 1.4 points more at the same number of weights. From all 60,000 images
(--config.data.valid=0.0) dense has 0.8975, variational dropout 42.0× at 1.14 ± 1.02 points.
"""

from additive_jax.configs import default


def get_config():
  """The options of a compression per weight."""
  config = default.get_config()
  config.experiment = 'compress'
  config.num_seeds = 3
  config.data.name, _ = default.images()
  config.model.name = 'dense_stack'
  config.model.gates = ('sub_activation',)
  config.model.num_chunks = 2
  config.model.hidden = (300, 100)
  config.learning_rate = 2e-3
  config.schedule.name = 'linear_schedule'
  config.schedule.kwargs = {'end_value': 0.0, 'transition_steps': 1.0}
  config.train.epochs = 10.0
  config.train.batch_size = 250
  config.train.structures_per_step = 1
  config.train.log_every = 240
  config.train.checkpoint_every = 1200
  config.compress.level = 'weight'
  config.compress.epochs = 80.0
  config.compress.tune_epochs = 50.0
  config.compress.kl = 12.0
  config.compress.distill = 0.9
  config.compress.temperature = 2.0
  config.compress.teacher_epochs = 40.0
  config.compress.ramp = 0.8
  config.compress.log_variance = -10.0
  config.compress.variance_rate = 10.0
  config.compress.sparsities = (0.9, 0.99)
  return config
