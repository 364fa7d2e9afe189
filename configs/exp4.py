"""Exp 4 on bytes: tokens choose among the structures of a layer.

  additive-jax --config=exp4

A causal transformer of 2 layers, D=64, H=128, on 6,400 sequences of 64 bytes of the standard
library, once over (400 steps), against networks whose feed-forward layers are mixtures of the 4
structures of 3 chunks (top 2, renormalised), 8 experts of their own weights (top 2), or the best
single structure, with hidden units such that active FLOPs or parameters are those of the dense one.

Time: 13 min on 2 CPU cores that other work shared, compile included (36 trainings, 3 pools).
Result (seeds 0–2, 512 test sequences, nats a byte; ± is half the 95 % interval over the seeds;
differences from dense are paired by seed; MFLOPs of one sequence forward, thousands of parameters):

  network                 MFLOPs  params  test loss      difference       accuracy  difference
  dense                     13.2     100  2.067 ± 0.008                   0.466
  best single structure     13.3     100  2.048 ± 0.012  −0.019 ± 0.008   0.473     +0.007 ± 0.003
  equal FLOPs: softmax      13.2      90  2.092 ± 0.068  +0.025 ± 0.076   0.462     −0.004 ± 0.017
    factorised              13.2      90  2.095 ± 0.084  +0.028 ± 0.092   0.464     −0.002 ± 0.023
    marginal                13.2      90  2.080 ± 0.010  +0.013 ± 0.015   0.464     −0.002 ± 0.008
    random                  13.2      90  2.118 ± 0.015  +0.051 ± 0.022   0.457     −0.009 ± 0.015
    8 experts               13.2     197  2.023 ± 0.033  −0.044 ± 0.041   0.477     +0.011 ± 0.010
  equal params: softmax     15.2     100  2.059 ± 0.035  −0.008 ± 0.039   0.472     +0.006 ± 0.005
    factorised              15.2     100  2.073 ± 0.019  +0.006 ± 0.020   0.467     +0.001 ± 0.009
    marginal                15.2     100  2.070 ± 0.034  +0.003 ± 0.027   0.468     +0.002 ± 0.009
    random                  15.2     100  2.104 ± 0.016  +0.037 ± 0.015   0.460     −0.006 ± 0.007
    8 experts               10.0     100  2.091 ± 0.030  +0.024 ± 0.038   0.465     −0.001 ± 0.008

What routers learn is worth 0.03 to 0.05 nats over a random choice. At equal parameters the mixtures
are level with dense; at equal FLOPs the activations of spans cost them a third of the hidden units,
and they are not below it. Of the mixtures' intervals only random's exclude zero. The best single
structure, 1011, beats dense.

Tried on seed 0, loss of softmax at equal parameters less dense: 4 chunks, H=256 +0.030, the same
without the load-balance loss +0.022, with top 1 +0.073, with 4 of the 8 structures +0.014, and with
2 chunks +0.004; 2 chunks, D=32, H=128 and 1,000 steps +0.008, there marginal −0.013.

The figures are those of --config.data.valid=0.0, with nothing held out to choose by.
"""

from additive_jax.configs import default


def get_config():
  """The options of Exp 4 on bytes."""
  config = default.get_config()
  config.experiment = 'experts'
  config.num_seeds = 3
  config.learning_rate = 3e-3
  config.data.name = 'stdlib'
  config.data.sequence_length = 64
  config.data.train_examples = 6400
  config.data.test_examples = 512
  config.model.name = 'transformer'
  config.model.num_blocks = 2
  config.model.width = 64
  config.model.hidden = (128,)
  config.model.num_chunks = 3
  config.model.num_heads = 4
  config.model.positions = 'rope'
  config.train.epochs = 1.0
  config.train.batch_size = 16
  config.train.structures_per_step = 1
  config.experts.renormalise = True
  return config
