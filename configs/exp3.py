"""Exp 3: random structures as a regulariser, on 200 images.

  additive-jax --config=exp3

A vision transformer of 4 layers (8 gates) on 200 digits, with all gates on and with random gates:
one structure a step (conditional) and one an image (per sample), keep rates falling over depth from
0.94 to 0.5, what a gate adds divided by its rate; for as many epochs, and for as many FLOPs.

Time: 11 min on 2 CPU cores that much other work shared, compile included (40 trainings; 5 min 11 s
of CPU time).
Result (seeds 5–12, 360 test images; ± is half the 95 % interval over the seeds; differences from
all gates on are paired by seed; last column: mean accuracy of all 256 structures):

  variant                   test loss      difference       accuracy  difference      structures
  all gates on              1.223 ± 0.084                   0.682                     0.229
  conditional               1.129 ± 0.088  −0.094 ± 0.109   0.663     −0.019 ± 0.034  0.368
    at equal FLOPs          1.077 ± 0.107  −0.146 ± 0.132   0.693     +0.011 ± 0.036  0.402
  per sample                1.121 ± 0.078  −0.102 ± 0.073   0.675     −0.007 ± 0.018  0.416
    at equal FLOPs          1.117 ± 0.097  −0.106 ± 0.080   0.694     +0.012 ± 0.020  0.453

Per sample lowers the test loss at 0.72 of the FLOPs a step, conditional at equal FLOPs; the
train–test gap falls from 1.20 to 0.73 (conditional) and 0.92 (per sample). No interval shows a
change of accuracy. What both clearly improve is the pool as a whole. The 200 images are others than
with --config.data.valid=0.0, where the differences in loss were −0.118 ± 0.074, −0.118 ± 0.055,
−0.067 ± 0.089 and −0.006 ± 0.094.

Rates were chosen on seeds 100–107 with 100 epochs, conditional (differences in loss and accuracy):
linear to 0.8 −0.155 ± 0.061 and +0.014 ± 0.022, linear to 0.5 −0.187 ± 0.059 and +0.003 ± 0.022,
linear to 0.2 −0.243 ± 0.079 and +0.003 ± 0.025, uniform 0.5 −0.173 ± 0.042 and −0.042 ± 0.022. On
seeds 5–12 linear to 0.8 with 100 epochs gave −0.088 ± 0.095 and −0.009 ± 0.019. A residual MLP of 8
blocks (D=64, H=128, 120 epochs, seeds 100–115; loss 0.709, accuracy 0.851) gains nothing that its
intervals show: linear to 0.5 −0.024 ± 0.043 and +0.003 ± 0.009, uniform 0.8 −0.027 ± 0.032 and
+0.003 ± 0.007, uniform 0.5 +0.017 ± 0.047 and −0.006 ± 0.008; without rescaling within 0.02 of
these; all this with --config.data.valid=0.0.
"""

from additive_jax.configs import default


def get_config():
  """The options of Exp 3."""
  config = default.get_config()
  config.experiment = 'stochastic'
  config.seed = 5
  config.num_seeds = 8
  config.learning_rate = 2e-3
  config.data.train_examples = 200
  config.model.name = 'transformer'
  config.model.num_blocks = 4
  config.model.width = 32
  config.model.num_heads = 2
  config.model.hidden = (64,)
  config.train.epochs = 60.0
  config.train.batch_size = 50
  config.train.structures_per_step = 1
  config.train.log_every = 40
  config.sampler.name = 'bernoulli'
  config.sampler.keep_rate = 0.5
  config.sampler.keep_ramp = 'linear'
  config.stochastic.rescale = 'inverse'
  return config
