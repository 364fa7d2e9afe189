"""Compression per weight: LeNet-300-100 by sparse variational dropout, beside magnitude pruning.

  additive-jax --config=compress --devices=1

All 60,000 images of Fashion-MNIST where the Debian package dataset-fashion-mnist is installed, else
digits; --config.data.name=idx:DIR takes any folder in the format of MNIST. Ten epochs of a dense
network, from which all start; then 130 more: dense, or 80 with noise and 50 of what that leaves, or
130 of what magnitude pruning leaves. What is left learns from a teacher, the dense network after 40
epochs more, with a weight of 0.9. Adam, a learning rate that falls from 2e-3 to 0 each time.

Time: 29 min on 2 CPU cores that other work shared.
Result (Fashion-MNIST, seeds 0–2, 10,000 test images; ± is half the 95 % interval over the seeds;
points lost are paired by seed; FLOPs are those of the network without the units and inputs that no
weight reads, cut out):

  network                    weights  fewer         accuracy  points lost   FLOPs  test loss
  dense                      266,200                0.8975                  533 k  1.181
  its teacher of 50 epochs   266,200                0.8995    −0.20 ± 0.82  533 k  0.493
  variational dropout          6,345  42.0× ± 3.9   0.8861    1.14 ± 1.02   123 k  0.415
    before it is tuned         6,345  42.0× ± 3.9   0.8743    2.32 ± 0.32   123 k  0.400
  magnitude, as many           6,345  42.0× ± 3.9   0.8722    2.53 ± 0.79   251 k  0.465
  magnitude, 90 % removed     26,620  10.0×         0.8863    1.12 ± 0.32   530 k  0.564
  magnitude, 99 % removed      2,662  100.0×        0.8453    5.23 ± 1.54   120 k  0.528

The target, 40 times fewer weights at 0.5 points lost, is missed by 0.6 points, and by 0.8 against
the teacher, which is better than the dense network, trained too long. Pruning by magnitude loses
1.4 points more at the same number of weights.

The figures are those of --config.data.valid=0.0, with nothing held out to choose by.
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
