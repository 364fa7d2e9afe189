"""Exp 4 on images: tokens choose among the structures of a layer.

  additive-jax --config=exp4_vision

A vision transformer of 2 layers, D=48, H=96, on 4,800 images of Fashion-MNIST where the Debian
package dataset-fashion-mnist is installed, else on digits; twice over (300 steps); otherwise as
exp4.

Time: 10 min on one core, compile included (36 trainings, 3 pools).
Result (Fashion-MNIST, seeds 0–2, single structure chosen on 10,000 validation images, 1,024 test
images; ± is half the 95 % interval over the seeds; differences from dense paired by seed; MFLOPs
of one image forward, thousands of parameters):

  network                 MFLOPs  params  test loss      difference       accuracy  difference
  dense                      4.9      42  0.677 ± 0.090                   0.744
  best single structure      5.0      42  0.655 ± 0.024  −0.022 ± 0.077   0.756     +0.012 ± 0.041
  equal FLOPs: softmax       4.9      35  0.670 ± 0.096  −0.007 ± 0.069   0.749     +0.006 ± 0.034
    factorised               4.9      34  0.673 ± 0.065  −0.005 ± 0.098   0.749     +0.005 ± 0.033
    marginal                 4.9      34  0.669 ± 0.047  −0.009 ± 0.080   0.757     +0.013 ± 0.046
    random                   4.9      34  0.661 ± 0.086  −0.017 ± 0.084   0.756     +0.012 ± 0.049
    8 experts                4.9      96  0.634 ± 0.050  −0.043 ± 0.103   0.762     +0.018 ± 0.024
  equal params: softmax      6.0      42  0.641 ± 0.019  −0.037 ± 0.092   0.756     +0.012 ± 0.052
    factorised               6.1      42  0.659 ± 0.060  −0.018 ± 0.137   0.754     +0.010 ± 0.050
    marginal                 6.0      42  0.654 ± 0.058  −0.023 ± 0.102   0.749     +0.005 ± 0.019
    random                   6.1      42  0.647 ± 0.046  −0.031 ± 0.079   0.758     +0.015 ± 0.046
    8 experts                3.5      42  0.637 ± 0.066  −0.040 ± 0.100   0.764     +0.020 ± 0.033

Every mixture has a lower mean loss than the dense network, random routing too, but three seeds of a
training this short differ by more: no interval excludes zero, and learned routers are not better
than random ones. No other settings were tried.
"""

from additive_jax.configs import default


def get_config():
  """The options of Exp 4 on images."""
  config = default.get_config()
  config.experiment = 'experts'
  config.num_seeds = 3
  config.learning_rate = 3e-3
  name, patch_size = default.images()
  config.data.name = name
  config.data.train_examples = 4800 if name != 'digits' else 0
  config.data.test_examples = 1024 if name != 'digits' else 0
  config.model.name = 'transformer'
  config.model.patch_size = patch_size
  config.model.num_blocks = 2
  config.model.width = 48
  config.model.hidden = (96,)
  config.model.num_chunks = 3
  config.model.num_heads = 4
  config.train.epochs = 2.0
  config.train.batch_size = 32
  config.train.structures_per_step = 1
  config.experts.renormalise = True
  return config
