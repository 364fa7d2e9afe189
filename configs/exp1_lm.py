"""Exp 1 on a byte language model: all 64 structures of 3 layers, attention and feed-forward gates.

  python -m additive_jax.launch --config=configs/exp1_lm.py

Time: 15 min on 2 CPU cores that much other work shared, compile included (192 trainings, 3 pools).
Result (seeds 0–2): best 011111, loss 1.983 nats a byte, accuracy 0.493; all-on ranks 5th. Noise
ceiling of the mean over the seeds τ 0.88 (0.80 between single seeds). Shared against standalone: τ
0.542 (0.384 to 0.694), 0.61 of the ceiling; top-8 recall 0.125, which is that of chance; regret of
the top 8 0.043 (0.014 to 0.062; random 0.041). A pool that long does not rank this space well:
alone, attention in the first layer hurts, and in the pool it helps.
"""

from configs import default


def get_config():
  """The options of Exp 1 on bytes."""
  config = default.get_config()
  config.experiment = 'sweep'
  config.data.name = 'stdlib'
  config.data.sequence_length = 32
  config.data.train_examples = 16384
  config.data.test_examples = 1024
  config.model.name = 'transformer'
  config.model.num_blocks = 3
  config.model.width = 32
  config.model.num_heads = 4
  config.model.hidden = (192, 48, 12)
  config.model.positions = 'rope'
  config.model.unit = 'swiglu'
  config.learning_rate = 1.2e-2
  config.train.epochs = 1.0
  config.train.batch_size = 32
  config.train.structures_per_step = 2
  config.sweep.shared_epochs = 4.0
  config.sweep.top_k = 5
  return config
