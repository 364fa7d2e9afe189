"""DNA on images: patches choose modules in any order, against dense networks of the same compute.

  additive-jax --config=dna_vision

2 dense sublayers, then 4 steps of top 2 over 4 attention, 4 feed-forward and 2 identity modules,
D=32, H=64, on 4,800 images of Fashion-MNIST where the Debian package dataset-fashion-mnist is
installed, else on digits; twice over (300 steps); otherwise as dna_lm.

Time: 6 min on one core that other work shared, compile included (12 trainings).
Result (Fashion-MNIST, seeds 0–2, 1,024 test images; ± is half the 95 % interval over the seeds;
differences from dense are paired by seed; MFLOPs of one image forward, thousands of parameters):

  network        MFLOPs  params  test loss      difference       accuracy  difference
  dense             4.4      30  0.753 ± 0.117                   0.709
  shallow           4.1      30  0.728 ± 0.027  −0.025 ± 0.099   0.721     +0.012 ± 0.052
  DNA               4.4      47  0.687 ± 0.026  −0.066 ± 0.137   0.740     +0.031 ± 0.052
  DNA, skips 0.3    4.2      47  0.689 ± 0.051  −0.064 ± 0.161   0.735     +0.026 ± 0.074

DNA's mean losses are below those of the dense networks of its compute, within wide intervals. It
skips 0.244 of the choices by itself and 0.300 when steered to 0.3 (test split). In the first seed
paths follow rank^−0.51 (0.45 to 0.56) and rank^−0.50 (0.47 to 0.56); modules tell 0.38 to 0.45 bits
about the label, 0.02 to 0.03 by chance. No other settings were tried.
"""

from additive_jax.configs import default


def get_config():
  """The options of DNA on images."""
  config = default.get_config()
  config.experiment = 'dna'
  config.num_seeds = 3
  config.learning_rate = 8e-3
  config.schedule.name = 'warmup_cosine_decay_schedule'
  config.schedule.kwargs = {'warmup_steps': 0.05, 'decay_steps': 1.0}
  name, patch_size = default.images()
  config.data.name = name
  config.data.train_examples = 4800 if name != 'digits' else 0
  config.data.test_examples = 1024 if name != 'digits' else 0
  config.model.name = 'transformer'
  config.model.patch_size = patch_size
  config.model.num_blocks = 5
  config.model.width = 32
  config.model.hidden = (64,)
  config.model.num_heads = 2
  config.train.epochs = 2.0
  config.train.batch_size = 32
  config.train.structures_per_step = 1
  config.balance.bias_rate = 0.01
  config.balance.router_rate = 0.3
  config.dna.shared_keys = True
  return config
