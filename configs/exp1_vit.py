"""Exp 1 on a vision transformer: all 64 structures of 3 layers, attention and feed-forward gates.

  additive-jax --config=exp1_vit

Time: 5 min 10 s on 2 CPU cores, compile included (192 trainings, 3 pools).
Result (seeds 0–2, 1,437 images of Fashion-MNIST, 360 for the test): best 111100, loss 0.625,
accuracy 0.776; all-on ranks 21st. Three seeds hardly tell these structures apart: noise ceiling of
the mean τ 0.56 (0.37 between single seeds). Shared against standalone: τ 0.459 (0.298 to 0.616),
0.82 of the ceiling; top-8 recall 0.375 (chance 0.125); regret of the top 8 0 (0 to 0.029; random
0.019).

The figures are those of --config.data.valid=0.0, with nothing held out to choose by.
"""

from additive_jax.configs import default


def get_config():
  """The options of Exp 1 on a ViT."""
  config = default.get_config()
  config.experiment = 'sweep'
  config.data.name, config.model.patch_size = default.images()
  config.data.train_examples = 1437
  config.data.test_examples = 360
  config.model.name = 'transformer'
  config.model.num_blocks = 3
  config.model.width = 32
  config.model.num_heads = 2
  config.model.hidden = (64,)
  config.learning_rate = 2e-3
  config.train.epochs = 10.0
  config.train.batch_size = 64
  config.train.structures_per_step = 2
  return config
