"""Exp 1: all 64 structures of a network, each trained alone and all in one shared pool.

  additive-jax --config=exp1

A residual MLP of 6 blocks on digits, of falling width (256 to 2 hidden units), so that structures
differ by more than the noise of a seed; ranked by test loss.

Time: 41 to 62 s on 2 CPU cores, compile included (320 trainings, 5 pools).
Result (seeds 0–4): best 110000, loss 0.452, accuracy 0.876; all-on ranks 18th. Noise ceiling of the
mean over the seeds τ 0.90 (0.79 between single seeds). Shared against standalone: τ 0.836 (0.771 to
0.883), 0.93 of the ceiling; top-8 recall 0.5 (random 0.125), regret 0 (random 0.022).
"""

from additive_jax.configs import default


def get_config():
  """The options of Exp 1."""
  config = default.get_config()
  config.experiment = 'sweep'
  config.num_seeds = 5
  config.learning_rate = 2e-3
  config.model.num_blocks = 6
  config.model.width = 32
  config.model.hidden = (256, 96, 32, 12, 4, 2)
  config.train.epochs = 5.0
  config.train.log_every = 10
  config.train.structures_per_step = 2
  return config
