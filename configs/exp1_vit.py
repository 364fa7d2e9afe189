"""Exp 1 on a vision transformer: all 64 structures of 3 layers, attention and feed-forward gates.

  additive-jax --config=exp1_vit

Time: 16 min of CPU time on 2 cores that much other work shared, compile included (192 trainings, 3
pools).
Result (seeds 0–2, 1,437 images of Fashion-MNIST; ranked on 10,000 validation images, reported on
360 test images): best 111100, test loss 0.650, accuracy 0.772; all-on ranks 8th. Three seeds hardly
tell these structures apart: noise ceiling of the mean τ 0.60 (0.42 between single seeds). Shared
against standalone: τ 0.529 (0.393 to 0.652), 0.89 of the ceiling; top-8 recall 0.625 (chance
0.125); regret of the top 8 0 (0 to 0.016; random 0.008).
"""

from additive_jax.configs import default


def get_config():
  """The options of Exp 1 on a ViT."""
  config = default.get_config()
  config.experiment = 'sweep'
  config.data.name, config.model.patch_size = default.images()
  if config.data.name != 'digits':
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
