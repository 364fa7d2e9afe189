"""Exp 2: the best 4 of 64 structures, found by a short shared sweep, trained in one pool.

  additive-jax --config=exp2

A residual MLP of 6 equal blocks on digits; the same structures trained alone at equal FLOPs.

Time: 34 to 40 s on 2 CPU cores, compile included.
Result (seeds 0–4, 360 test images; ± is half the 95 % interval over the seeds): mean loss of the
four 0.308 co-trained and 0.322 alone, difference −0.014 ± 0.013; accuracy 0.911 and 0.905; ensemble
loss 0.295 and 0.306; 105,162 parameters in the pool, 320,424 in the four networks.

The four are chosen on 287 training images that are held out. With --config.data.valid=0.0, where
the test images choose, the losses are 0.250 and 0.267, difference −0.016 ± 0.009.
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
