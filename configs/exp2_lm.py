"""Exp 2 on a byte language model: the best 4 of 64 structures of 3 layers, trained in one pool.

  additive-jax --config=exp2_lm

Time: 3 min 32 s on 2 CPU cores that other work shared, compile included.
Result (seeds 0–2): co-trained loss 1.719 nats a byte, accuracy 0.559; the same four alone at equal
FLOPs 1.884 and 0.515; difference of the loss, paired by seed, −0.165 ± 0.023. Ensembles of the
four: 1.716 and 1.822. Mean cosine of their gradients 0.960.

The figures are those of --config.data.valid=0.0, with nothing held out to choose by.
"""

from additive_jax.configs import default, exp1_lm


def get_config():
  """The options of Exp 2 on bytes."""
  config = exp1_lm.get_config()
  config.experiment = 'cotrain'
  config.sweep = default.get_config().sweep
  config.cotrain.top_k = 4
  config.cotrain.sweep_epochs = 1.0
  return config
