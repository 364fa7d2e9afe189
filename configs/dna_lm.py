"""DNA on bytes: tokens choose modules in any order, against dense networks of the same compute.

  additive-jax --config=dna_lm

2 dense sublayers, then 4 steps of top 2 over 4 attention, 4 SwiGLU and 2 identity modules, D=64,
H=256, on 6,400 sequences of 64 bytes of the standard library, once over (400 steps); with skips
left free, and with the share of skipped choices steered to 0.3. The dense network has 5 layers and
the FLOPs that the free DNA was measured to use; the shallow one 4 layers and those of the other.

Time: 13 min on 2 CPU cores that other work shared, compile included (12 trainings).
Result (seeds 0–2, 512 test sequences, nats a byte; ± is half the 95 % interval over the seeds;
differences from dense are paired by seed; MFLOPs of one sequence forward, thousands of parameters):

  network        MFLOPs  params  test loss      difference       accuracy  difference
  dense            40.8     287  1.922 ± 0.093                   0.503
  shallow          39.7     287  1.905 ± 0.117  −0.017 ± 0.027   0.507     +0.005 ± 0.011
  DNA              40.8     366  2.041 ± 0.025  +0.119 ± 0.085   0.470     −0.033 ± 0.025
  DNA, skips 0.3   39.7     366  2.036 ± 0.010  +0.114 ± 0.093   0.470     −0.032 ± 0.026

In a training this short DNA is behind dense networks of its compute: each of its modules sees about
a fifth of the tokens. It skips 0.263 of the choices by itself and 0.297 when steered to 0.3 (test
split). Paths follow rank^−0.58 (0.55 to 0.61) and rank^−0.49 (0.46 to 0.52); modules tell 0.23 to
0.48 bits about the kind of byte, 0.001 by chance; a token uses a module that it uses 1.4 times.

Tried on seed 0 (loss): without the load-balance loss 1.999, but free skips then take up to 0.77 of
a step; renormalised weights without it 2.027, with 2 + 2 + 2 modules 2.082 when steered.

The figures are those of --config.data.valid=0.0, with nothing held out to choose by.
"""

from additive_jax.configs import default


def get_config():
  """The options of DNA on bytes."""
  config = default.get_config()
  config.experiment = 'dna'
  config.num_seeds = 3
  config.learning_rate = 3e-3
  config.data.name = 'stdlib'
  config.data.sequence_length = 64
  config.data.train_examples = 6400
  config.data.test_examples = 512
  config.model.name = 'transformer'
  config.model.num_blocks = 5
  config.model.width = 64
  config.model.hidden = (256,)
  config.model.num_heads = 4
  config.model.positions = 'rope'
  config.model.unit = 'swiglu'
  config.train.epochs = 1.0
  config.train.batch_size = 16
  config.train.structures_per_step = 1
  config.balance.bias_rate = 0.01
  return config
