"""Exp 2: the best 4 of 64 structures, found by a short shared sweep, trained in one pool.

  additive-jax --config=exp2

A residual MLP of 6 equal blocks on digits; the same structures trained alone at equal FLOPs.

Time: 34 to 40 s on 2 CPU cores, compile included.
Result (seeds 0–4, 360 test images; ± is half the 95 % interval over the seeds): mean loss of the
four 0.250 co-trained and 0.267 alone, difference −0.016 ± 0.009; accuracy 0.927 and 0.922; ensemble
loss 0.243 and 0.255; 105,162 parameters in the pool, 320,424 in the four networks.

The four are chosen on the test split, as are the losses: compare the sides with each other, and not
the loss with that of a network chosen otherwise.
"""

from additive_jax.configs import default


def get_config():
  """The options of Exp 2."""
  config = default.get_config()
  config.experiment = 'cotrain'
  config.num_seeds = 5
  config.model.num_blocks = 6
  config.model.width = 64
  config.model.hidden = (128,)
  config.cotrain.top_k = 4
  return config
