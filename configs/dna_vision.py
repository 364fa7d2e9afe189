"""DNA on images: patches choose modules in any order, against dense networks of the same compute.

  additive-jax --config=dna_vision

2 dense sublayers, then 4 steps of top 2 over 4 attention, 4 feed-forward and 2 identity modules,
D=32, H=64, on 4,800 images of Fashion-MNIST where the Debian package dataset-fashion-mnist is
installed, else on digits; twice over (300 steps); otherwise as dna_lm.

Time: 5 min 16 s of CPU time (17 min on a core that other work shared), compile included (12
trainings).
Result (Fashion-MNIST, seeds 0–2, 1,024 test images; ± is half the 95 % interval over the seeds;
differences from dense are paired by seed; MFLOPs of one image forward, thousands of parameters):

  network        MFLOPs  params  test loss      difference       accuracy  difference
  dense             5.0      36  0.764 ± 0.074                   0.698
  shallow           5.0      39  0.733 ± 0.130  −0.030 ± 0.056   0.720     +0.022 ± 0.018
  DNA               5.0      40  0.664 ± 0.080  −0.100 ± 0.047   0.745     +0.047 ± 0.025
  DNA, skips 0.3    5.0      40  0.669 ± 0.076  −0.095 ± 0.036   0.745     +0.047 ± 0.023

DNA is better than the dense network of its FLOPs, by more than the interval, and its mean is below
the shallow network's (−0.064 ± 0.072). It skips 0.294 of the choices by itself and 0.299 when
steered to 0.3. In the first seed paths follow rank^−0.62 (0.58 to 0.65) and rank^−0.59 (0.56 to
0.62); modules tell 0.34 to 0.56 bits about the label, 0.02 to 0.03 by chance.

Learning rates were tried on the validation split, seeds 100 and 101 (mean loss): 3e-3 dense 0.707,
DNA 0.643; 8e-3 dense 0.698, DNA 0.650. There, with 8e-3: sigmoids in place of the softmax 0.726;
3 steps and a dense attention and feed-forward sublayer after them 0.663; keys of each module's own
0.695, which leaves it 4.1 MFLOPs, for it skips more.
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
