"""Exp 1 on a byte language model: all 64 structures of 3 layers, attention and feed-forward gates.

  additive-jax --config=exp1_lm

Time: 31 CPU minutes (35 min on one core that other work shared), compile included (192 trainings, 3
pools).
Result (seeds 0–2, ranked on the validation split, reported on test): best 111010, loss 1.867 nats a
byte, accuracy 0.519; all-on ranks 5th. Noise ceiling of the mean over the seeds τ 0.908 (0.856
between single seeds). Shared against standalone: τ 0.781 (0.686 to 0.847), 0.860 of the ceiling;
top-5 recall 0.8 (chance 0.078); regret of the top 5 0 (0 to 0; random 0.035). Ranked on the test
split, with --config.data.valid=0.0, τ was 0.805 of a ceiling of 0.907.

What was tried before: with a learning rate of 4e-3 the trainings alone end before attention in the
first layer is of much use (its gate lowers the loss by 0.1), while in the pool it is the most
useful gate (0.2): τ 0.64, 0.69 of the ceiling 0.924, with pools of 2 or 8 lengths alike. With 64
hidden units in each layer the structures are also closer to each other: ceiling 0.883, τ 0.54.
"""

from additive_jax.configs import default


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
