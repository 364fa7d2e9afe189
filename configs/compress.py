"""Compression per weight: LeNet-300-100 by sparse variational dropout, beside magnitude pruning.

  python -m additive_jax.launch --config=configs/compress.py --devices=1

All 60,000 images of Fashion-MNIST where the Debian package dataset-fashion-mnist is installed, else
digits; --config.data.name=idx:DIR takes any folder in the format of MNIST. Ten epochs of a dense
network, from which all start; then 40 more: dense, or 20 with noise and 20 of what that leaves, or
40 of what magnitude pruning leaves. Adam, a learning rate that falls from 2e-3 to 0 each time.

Time: 34 min on 2 CPU cores that much other work shared.
Result (Fashion-MNIST, seeds 0–2, 10,000 test images; ± is half the 95 % interval over the seeds;
points lost are paired by seed; FLOPs are those of the network without the units and inputs that no
weight reads, cut out):

  network                    weights  fewer         accuracy  points lost   FLOPs  test loss
  dense                      266,200                0.8995                  533 k  0.493
  variational dropout          5,438  49.0× ± 1.9   0.8757    2.38 ± 0.18   133 k  0.339
    before it is tuned         5,438  49.0× ± 1.9   0.8432    5.63 ± 0.51   133 k  0.431
  magnitude, as many           5,438  49.0× ± 1.9   0.8659    3.36 ± 0.64   220 k  0.367
  magnitude, 90 % removed     26,620  10.0×         0.8921    0.74 ± 0.15   530 k  0.363
  magnitude, 99 % removed      2,662  100.0×        0.8436    5.59 ± 0.39   120 k  0.437

The target, 40 times fewer weights at 0.5 points lost, is missed by 1.9 points; pruning by
magnitude loses a point more at the same number of weights, and more than 0.5 points with five times
as many. What is left cannot be tuned to fit the training set as the dense network does: its loss
there ends at 0.28 nats, not 0.04.
"""

from configs import default


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
