"""Compression per unit: LeNet-300-100 loses hidden units by variational dropout, and is cut out.

  python -m additive_jax.launch --config=configs/compress_units.py --devices=1

Data, network and the dense training are those of compress; then 12 epochs with noise and 28 of what
that leaves, or 40 of what magnitude pruning leaves.

Time: 6 min on 2 otherwise idle CPU cores, compile included.
Result (Fashion-MNIST, seeds 0–2, 10,000 test images; ± is half the 95 % interval over the seeds;
points lost are paired by seed; FLOPs of one image are XLA's for the network that was cut out; its
logits differ from those of the network with zeros by at most 1.5e-5):

  network                    units        FLOPs  fewer         accuracy  points lost   test loss
  dense                      300, 100     533 k                0.8995                  0.493
  variational dropout        71, 85       126 k  4.23× ± 0.20  0.8921    0.74 ± 0.45   0.396
    before it is tuned       71, 85       126 k  4.23× ± 0.20  0.8808    1.87 ± 0.61   0.335
  magnitude, as many         71, 85       126 k  4.23× ± 0.20  0.8917    0.78 ± 0.72   0.419
  magnitude, 75 % of each    75, 25       122 k  4.37×         0.8916    0.79 ± 0.44   0.380

The target, 4 times fewer FLOPs at 0.5 points lost, is missed by 0.2 points; three seeds do not tell
it from the target, nor the ways to choose the units from each other.
"""

from configs import compress


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
