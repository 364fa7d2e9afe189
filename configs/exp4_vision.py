"""Exp 4 on images: tokens choose among the structures of a layer.

  additive-jax --config=exp4_vision

A vision transformer of 2 layers, D=48, H=96, on 4,800 images of Fashion-MNIST where the Debian
package dataset-fashion-mnist is installed, else on digits; twice over (300 steps); otherwise as
exp4.

Time: 16 min on 2 CPU cores that much other work shared, compile included (36 trainings, 3 pools; 12
min of CPU time).
Result (Fashion-MNIST, seeds 0–2, 1,024 test images; ± is half the 95 % interval over the seeds;
differences from dense are paired by seed; MFLOPs of one image forward, thousands of parameters):

  network                 MFLOPs  params  test loss      difference       accuracy  difference
  dense                      4.9      42  0.675 ± 0.115                   0.749
  best single structure      4.9      42  0.691 ± 0.047  +0.016 ± 0.069   0.743     −0.007 ± 0.017
  equal FLOPs: softmax       4.9      35  0.639 ± 0.024  −0.036 ± 0.094   0.767     +0.018 ± 0.035
    factorised               4.9      34  0.629 ± 0.054  −0.046 ± 0.060   0.766     +0.017 ± 0.038
    marginal                 4.9      35  0.653 ± 0.061  −0.022 ± 0.081   0.750     +0.001 ± 0.017
    random                   4.9      34  0.675 ± 0.050  −0.000 ± 0.164   0.747     −0.002 ± 0.058
    8 experts                4.9      96  0.644 ± 0.083  −0.031 ± 0.032   0.754     +0.005 ± 0.042
  equal params: softmax      6.0      42  0.636 ± 0.036  −0.039 ± 0.124   0.756     +0.007 ± 0.027
    factorised               6.1      42  0.666 ± 0.071  −0.009 ± 0.115   0.745     −0.004 ± 0.038
    marginal                 6.0      42  0.651 ± 0.017  −0.024 ± 0.111   0.760     +0.011 ± 0.033
    random                   6.1      42  0.692 ± 0.079  +0.017 ± 0.047   0.738     −0.011 ± 0.015
    8 experts                3.5      42  0.626 ± 0.008  −0.049 ± 0.118   0.767     +0.018 ± 0.021

Every learned router has a lower mean loss than the dense network at equal FLOPs and at equal
parameters, but three seeds of a training this short differ by more: no interval excludes zero. No
other settings were tried.

The figures are those of --config.data.valid=0.0, with nothing held out to choose by.
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
