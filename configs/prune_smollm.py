"""Prune a pretrained language model: attention and feed-forward branches that it can do without.

  additive-jax --config=prune_smollm --config.pretrained=PATH --config.data.name=text:PATH

`pretrained` is a Hugging Face directory or a GGUF file of the Llama family, such as SmolLM2-135M,
and `text:PATH` a folder of documents; without one it is the standard library's source. What is
left is a directory that transformers opens, `RUN/exported/`.
"""

from additive_jax.configs import default


def get_config():
  """The options of pruning a pretrained language model of some hundred million parameters."""
  config = default.get_config()
  config.experiment = 'prune'
  config.num_seeds = 1
  config.data.name = 'stdlib'
  config.data.sequence_length = 128
  config.data.train_examples = 768
  config.data.valid_examples = 48
  config.data.test_examples = 48
  config.learning_rate = 2e-4
  config.clip_norm = 1.0
  config.train.batch_size = 4
  config.train.structures_per_step = 1
  config.train.log_every = 16
  config.train.checkpoint_every = 64
  config.prune.budget = 0.8
  config.prune.cost = 'params'
  config.prune.of = 'gates'
  config.prune.baselines = ('cosine',)
  config.prune.sets = 2
  config.prune.calibration_examples = 8
  config.prune.ranked = 8
  config.prune.candidates = 2
  config.prune.heal_epochs = 1.0
  return config
