"""Exp 4 on bytes: tokens choose among the structures of a layer.

  additive-jax --config=exp4

A causal transformer of 2 layers, D=64, H=128, on 6,400 sequences of 64 bytes of the standard
library, once over (400 steps), against networks whose feed-forward layers are mixtures of the 4
structures of 3 chunks (top 2, renormalised), 8 experts of their own weights (top 2), or the best
single structure, with hidden units such that active FLOPs or parameters are those of the dense one.

Time: 14 CPU minutes (23 min on one core that other work shared), compile included (36 trainings, 3
pools).
Result (seeds 0–2, the single structure chosen on the validation split, 512 test sequences, nats a
byte; ± is half the 95 % interval over the seeds; differences from dense are paired by seed; MFLOPs
of one sequence forward, thousands of parameters):

  network                 MFLOPs  params  test loss      difference       accuracy  difference
  dense                     13.2     100  1.970 ± 0.018                   0.493
  best single structure     13.3     100  1.977 ± 0.008  +0.008 ± 0.024   0.490     −0.004 ± 0.010
  equal FLOPs: softmax      13.2      89  1.989 ± 0.055  +0.019 ± 0.065   0.487     −0.006 ± 0.017
    factorised              13.2      89  1.995 ± 0.040  +0.025 ± 0.058   0.484     −0.010 ± 0.019
    marginal                13.2      89  1.992 ± 0.027  +0.023 ± 0.042   0.485     −0.008 ± 0.020
    random                  13.2      89  2.026 ± 0.014  +0.056 ± 0.024   0.478     −0.016 ± 0.015
    8 experts               13.2     197  1.925 ± 0.012  −0.045 ± 0.021   0.500     +0.006 ± 0.013
  equal params: softmax     15.3     100  1.975 ± 0.018  +0.006 ± 0.036   0.490     −0.004 ± 0.011
    factorised              15.4     100  1.975 ± 0.043  +0.006 ± 0.040   0.490     −0.003 ± 0.005
    marginal                15.4     100  1.969 ± 0.062  −0.001 ± 0.052   0.492     −0.001 ± 0.012
    random                  15.4     100  2.002 ± 0.020  +0.032 ± 0.030   0.485     −0.008 ± 0.007
    8 experts               10.0     100  1.988 ± 0.040  +0.018 ± 0.058   0.487     −0.006 ± 0.019

What routers learn is worth 0.03 to 0.04 nats over a random choice. Mixtures are level with dense at
equal parameters, and at equal FLOPs, where the activations of spans cost them a third of the hidden
units, their means are above it by less than the intervals. Random choices are worse by more than
them. Experts of their own are better at equal FLOPs, with twice the parameters.

On the validation split, seeds 100 and 101, at equal FLOPs (mean loss): dense 2.043, softmax 2.050,
marginal 2.064; with --config.model.unit=relu 2.054, 2.059, 2.056, random 2.063: ReLU costs a span
less, and no more is gained by it. With a constant rate of 3e-3, and routers that learn at the same,
the losses were 2.058 (dense), at equal FLOPs +0.036 ± 0.038, +0.038 ± 0.046 and +0.030 ± 0.034, at
equal parameters +0.003 ± 0.017, +0.009 ± 0.032 and +0.014 ± 0.056.

Tried with that on seed 0, with --config.data.valid=0.0, loss of softmax at equal parameters less
dense: 4 chunks, H=256 +0.030, the same without the load-balance loss +0.022, with top 1 +0.073,
with 4 of the 8 structures +0.014, and with 2 chunks +0.004; 2 chunks, D=32, H=128 and 1,000 steps
+0.008, there marginal −0.013.
"""

from additive_jax.configs import default


def get_config():
  """The options of Exp 4 on bytes."""
  config = default.get_config()
  config.experiment = 'experts'
  config.num_seeds = 3
  config.learning_rate = 8e-3
  config.schedule.name = 'warmup_cosine_decay_schedule'
  config.schedule.kwargs = {'warmup_steps': 0.05, 'decay_steps': 1.0}
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
  config.balance.router_rate = 0.3
  return config
