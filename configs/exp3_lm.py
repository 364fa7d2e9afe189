"""Exp 3 on bytes: random structures as a regulariser of a small causal transformer.

  additive-jax --config=exp3_lm

4 layers (8 gates), D=32, on 256 sequences of 32 bytes of the standard library; otherwise as exp3.

Time: about 7 min on one core, compile included (25 trainings; stopped once, and resumed).
Result (seeds 5–9, 512 test sequences, nats a byte; ± is half the 95 % interval over the seeds;
differences from all gates on are paired by seed; last column: mean accuracy of all 256 structures):

  variant                   test loss      difference       accuracy  difference      structures
  all gates on              2.703 ± 0.038                   0.362                     0.244
  conditional               2.707 ± 0.041  +0.005 ± 0.052   0.351     −0.011 ± 0.003  0.311
    at equal FLOPs          2.643 ± 0.022  −0.060 ± 0.040   0.360     −0.001 ± 0.004  0.316
  per sample                2.644 ± 0.023  −0.059 ± 0.032   0.360     −0.002 ± 0.004  0.326
    at equal FLOPs          2.628 ± 0.028  −0.075 ± 0.027   0.367     +0.005 ± 0.004  0.332

Per sample gains in loss at 0.75 of the FLOPs, and more at equal FLOPs; conditional needs the longer
run. The train–test gap falls from 0.64 to 0.19 and 0.28. No other rates were tried here;
`benchmarks/regularisers.py` tunes them on a smaller network, beside dropout, weight decay and
stochastic depth: with weight decay they are more accurate than each of these alone.
"""

from additive_jax.configs import default


def get_config():
  """The options of Exp 3 on bytes."""
  config = default.get_config()
  config.experiment = 'stochastic'
  config.seed = 5
  config.num_seeds = 5
  config.learning_rate = 3e-3
  config.data.name = 'stdlib'
  config.data.sequence_length = 32
  config.data.train_examples = 256
  config.data.test_examples = 512
  config.data.valid_examples = 512
  config.model.name = 'transformer'
  config.model.num_blocks = 4
  config.model.width = 32
  config.model.hidden = (128,)
  config.model.num_heads = 2
  config.train.epochs = 30.0
  config.train.batch_size = 32
  config.train.structures_per_step = 1
  config.train.log_every = 40
  config.sampler.name = 'bernoulli'
  config.sampler.keep_rate = 0.5
  config.sampler.keep_ramp = 'linear'
  config.stochastic.rescale = 'inverse'
  return config
