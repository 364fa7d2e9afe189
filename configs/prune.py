"""Prune: the smaller network within a small language model that the run trains itself.

  additive-jax --config=prune

8 layers (16 gates), D=64, on bytes of the standard library: trained, searched on three calibration
sets of 64 sequences for 0.7 of what gates switch, the best three healed together for half an epoch.

Time: 2 min 27 s on 2 cores, 4 min of CPU, compile included.
Result (one seed, 512 test sequences, nats a byte; the chosen one has 0.69 of the parameters):

  network    parameters  test loss  perplexity  seconds of a sequence
  before     433,024     1.678      5.35        0.0018
  unhealed   299,840     1.938      6.94        0.0013
  after      299,840     1.673      5.33        0.0013

Healing takes back all that was lost and changes the ranks: the third of the three is best. Test
loss of what each method finds, unhealed, at 12, 19 and 31 % removed (means over the sets; ± is half
the 95 % interval; in brackets the evaluations, and the share removed where it is another):

  Bayesian        1.752  1.821 ± 0.012  1.939 ± 0.015  (81)
  greedy          1.752  1.835 ± 0.013  1.942 ± 0.015  (71)
  leave one out   1.804  1.949 ± 0.066  2.147          (20; 15, 23 and 31 %)
  cosine          1.771  1.883          2.215          (6; the last 35 %)
  random          1.791  1.878          1.995          (189; 15, 23 and 31 %)
"""

from additive_jax.configs import default


def get_config():
  """The options of a pruning on bytes of the standard library."""
  config = default.get_config()
  config.experiment = 'prune'
  config.num_seeds = 1
  config.learning_rate = 3e-3
  config.data.name = 'stdlib'
  config.data.sequence_length = 64
  config.data.train_examples = 8192
  config.data.valid_examples = 512
  config.data.test_examples = 512
  config.model.name = 'transformer'
  config.model.num_blocks = 8
  config.model.width = 64
  config.model.hidden = (256,)
  config.model.num_heads = 4
  config.model.positions = 'rope'
  config.train.epochs = 2.0
  config.train.batch_size = 32
  config.train.structures_per_step = 1
  config.train.log_every = 32
  config.sampler.name = 'bernoulli'
  config.sampler.keep_rate = 1.0
  config.prune.budget = 0.7
  config.prune.cost = 'params'
  config.prune.of = 'gates'
  config.prune.method = 'bayesian'
  config.prune.baselines = ('greedy', 'leave_one_out', 'cosine', 'random')
  config.prune.sets = 3
  config.prune.calibration_examples = 64
  config.prune.candidates = 3
  config.prune.heal_epochs = 0.5
  return config
