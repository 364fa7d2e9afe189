"""Prune a pretrained language model: attention and feed-forward branches that it can do without.

  additive-jax --config=prune_smollm --config.pretrained=PATH --config.data.name=text:PATH

`pretrained` is a Hugging Face directory or a GGUF file of the Llama family, such as SmolLM2-135M,
and `text:PATH` a folder of documents; without one it is the standard library's source. What is
left is a directory that transformers opens, `RUN/exported/`.

Time: 55 min 18 s on 2 cores that other work shared (90 CPU minutes) for SmolLM2-135M-Instruct from
the GGUF file, on the standard library's source: search on two sets of 1,024 tokens 18 min, judging
and the teacher 9 min, healing (192 steps of 512 tokens, two candidates in turn) 25 min.
Result (seed 0, one run, 48 test sequences of 128 tokens; 20 % of the body's parameters removed, of
all parameters 15.8 %):

  network   parameters   test loss  perplexity  accuracy  tokens a second
  before   134,515,008       2.510       12.31     0.536              447
  pruned   113,274,432       3.361       28.80     0.408
  healed   113,274,432       2.425       11.30     0.530              522

Healing takes back 110 % of the loss that pruning cost: it also learns what kind of text this is,
which the accuracy, still 0.5 points lower, says less of. Of the two candidates the one that was
first before is first after (test loss 2.425 and 2.426). Before healing the best structures of each
of the two searches have perplexity 30.6 (their mean), those by the cosine of what a branch changes
511. transformers has the logits of the exported directory to 2e-6 of their scale.
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
