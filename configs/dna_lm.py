"""DNA on bytes: tokens choose modules in any order, against dense networks of the same compute.

  additive-jax --config=dna_lm

2 dense sublayers, then 4 steps of top 2 over 4 attention, 4 SwiGLU and 2 identity modules, D=64,
H=256, on 6,400 sequences of 64 bytes of the standard library, once over (400 steps); with skips
left free, and with the share of skipped choices steered to 0.3. The dense network has 5 layers and
the FLOPs that the free DNA was measured to use; the shallow one 4 layers and those of the other.

Time: 11 CPU minutes (17 min on one core that other work shared), compile included (12 trainings).
Result (seeds 0–2, 512 test sequences, nats a byte; ± is half the 95 % interval over the seeds;
differences from dense are paired by seed; MFLOPs of one sequence forward, thousands of parameters):

  network        MFLOPs  params  test loss      difference       accuracy  difference
  dense            39.7     278  1.938 ± 0.084                   0.499
  shallow          39.9     289  1.896 ± 0.044  −0.042 ± 0.039   0.510     +0.011 ± 0.016
  DNA              39.6     366  2.015 ± 0.025  +0.077 ± 0.100   0.477     −0.021 ± 0.025
  DNA, skips 0.3   39.9     366  2.019 ± 0.040  +0.081 ± 0.121   0.476     −0.023 ± 0.031

In a training this short the mean loss of DNA is behind dense networks of its compute (each of its
modules sees about a fifth of the tokens), by no more than the interval over three seeds, and behind
the shallow network, the best here. By itself it skips 0.30 of the choices, as many as it is steered
to. Paths follow rank^−0.51 (0.47 to 0.55) and rank^−0.59 (0.56 to 0.62); modules tell 0.28 to 0.41
bits about the kind of byte, 0.001 by chance; a token uses a module that it uses 1.3 times (these of
seed 0). With --config.data.valid=0.0 the differences were +0.119 ± 0.085 and +0.114 ± 0.093.

With keys and values of all tokens from one layer (--config.dna.shared_keys=true, skip 0, seed 0
alone) the loss is 1.942 where dense has 1.917 at the same 45.0 MFLOPs (+0.025), with 341,000
parameters; without, in a run beside it, 2.021 where dense has 1.891 at 41.2 MFLOPs (+0.130). Other
seeds and longer trainings have not been tried.

Tried on seed 0, there (loss): without the load-balance loss 1.999, but free skips then take up to
0.77 of a step; renormalised weights without it 2.027, with 2 + 2 + 2 modules 2.082 when steered.
"""

from additive_jax.configs import default


def get_config():
  """The options of DNA on bytes."""
  config = default.get_config()
  config.experiment = 'dna'
  config.num_seeds = 3
  config.learning_rate = 8e-3
  config.schedule.name = 'warmup_cosine_decay_schedule'
  config.schedule.kwargs = {'warmup_steps': 0.05, 'decay_steps': 1.0}
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
  config.balance.router_rate = 0.3
  config.dna.shared_keys = True
  return config
