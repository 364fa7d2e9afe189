"""Every option, with its default. Other configs override a few; so does the command line.

  additive-jax --config=exp2 --config.learning_rate=3e-4

A key that is not in this file is refused, and so is a value of another type.
"""

from pathlib import Path

from ml_collections import ConfigDict

# Where the Debian package dataset-fashion-mnist puts its files.
FASHION_MNIST = Path('/usr/share/datasets/fashion-mnist')


def images() -> tuple[str, int]:
  """The images to use, and a patch size that suits them: Fashion-MNIST where it is installed, else
  digits."""
  return (f'idx:{FASHION_MNIST}', 4) if FASHION_MNIST.is_dir() else ('digits', 2)


def get_config() -> ConfigDict:
  """The default options."""
  config = ConfigDict()

  # What to run: 'sweep' (Exp 1: rank the structures), 'cotrain' (Exp 2: train the best together),
  # 'stochastic' (Exp 3: random structures as a regulariser), 'experts' (Exp 4: tokens choose
  # structures), 'dna' (tokens choose modules in any order), 'booster' (Exp 5: start a large model
  # from small ones) or 'compress' (what a network can do without, by variational dropout).
  config.experiment = 'cotrain'
  # First seed. A seed names the initial pool, the order of the data and the draws of structures.
  config.seed = 0
  # Seeds run: seed, seed + 1, … Intervals in tables and pictures are over them.
  config.num_seeds = 3

  # digits | stdlib | idx:DIR | text:PATH | tabular:NAME | tfds:NAME
  config.data = ConfigDict()
  config.data.name = 'digits'
  # Tokens of one example of text.
  config.data.sequence_length = 128
  # Where TensorFlow Datasets keeps its sets; '' is its own default.
  config.data.data_dir = ''
  # Whether a TensorFlow Datasets set that is not there may be downloaded.
  config.data.download = False
  # Bytes up to which a set is kept on the device; a larger one is read batch by batch.
  config.data.memory_limit = 2 * 1024**3
  # Examples used of each split, spaced evenly over it; 0 is all.
  config.data.train_examples = 0
  config.data.test_examples = 0

  # 'mlp', 'transformer' (a classifier of image patches, or a causal model of text), 'convnet',
  # 'lenet', 'vgg', 'dense_stack'; or 'module:Class' for a network of your own, which is made with
  # `kwargs` and num_classes alone.
  config.model = ConfigDict()
  config.model.name = 'mlp'
  # Kinds of gates: residual | sub_activation | lane. Those not chosen stay on.
  config.model.gates = ('residual',)
  # Chunks that the sub-activation gates of a branch join: one gate less than chunks.
  config.model.num_chunks = 4
  # Lanes that lane gates join; hidden units and attention heads are split over them.
  config.model.num_lanes = 2
  # Residual blocks of mlp, layers of transformer (an attention and a feed-forward site each).
  config.model.num_blocks = 6
  config.model.width = 64
  # Hidden units of a feed-forward branch; for mlp one number for all, or one per block. Of
  # dense_stack those of each hidden layer: (300, 100).
  config.model.hidden = (128,)
  # Of transformer.
  config.model.num_heads = 4
  # Side of the square patches that images are cut into.
  config.model.patch_size = 2
  # learned | rope
  config.model.positions = 'learned'
  # gelu | swiglu
  config.model.unit = 'gelu'
  # Of convnet and vgg: channels of each stage.
  config.model.channels = (16, 32)
  # Of convnet: residual blocks of each stage.
  config.model.blocks_per_stage = 2
  config.model.kwargs = ConfigDict()

  # Training of pools and of structures alone.
  config.train = ConfigDict()
  # Passes over the training set, at batch_size examples a step; a pool passes K times as many.
  config.train.epochs = 10.0
  # Examples of each structure and step.
  config.train.batch_size = 128
  # K, structures that a pool trains in each step. Co-training takes its own number of structures.
  config.train.structures_per_step = 4
  # Whether the K structures of a step share one batch instead of having one each.
  config.train.shared_batch = False
  # 'mean', or 'coverage': divide each parameter's gradient by the structures that used it.
  config.train.average = 'mean'
  # 'psum' or 'ring'.
  config.train.collective = 'psum'
  # Devices that experts of their own weights, or the modules of a DNA, are spread over: each holds
  # and runs as many of them. A number that divides the devices and the experts; 1: all have all.
  config.train.expert_devices = 1
  # Whether what the optimizer keeps is split over all devices of a pool's mesh, instead of each of
  # them having a copy (ZeRO, stage 1); the numbers stay the same.
  config.train.zero = False
  # Whether it is kept in host memory, from where each step fetches it: a copy for each device, or
  # with `zero` a part for each.
  config.train.offload = False
  # Devices that the sites of one network are spread over in stages, as a pipeline: a number that
  # divides the devices and, times pipe_repeats, the sites, which must be alike from stage to stage;
  # 1: all devices have all. Not part of a run's identity, nor are the next three.
  config.train.pipe_devices = 1
  # Parts of a slot's batch that go through the stages one after the other.
  config.train.microbatches = 4
  # 'gpipe': one stage on each device; 'circular': pipe_repeats of them, and microbatches a multiple
  # of pipe_devices, for a shorter bubble at more traffic.
  config.train.pipe_schedule = 'gpipe'
  config.train.pipe_repeats = 1
  # Weight in [0, 1] of in-place distillation from all-on; 0 is none.
  config.train.distill = 0.0
  # Steps between two points of the curves, at least; also the most that one device call takes.
  config.train.log_every = 50
  # Steps between two checkpoints.
  config.train.checkpoint_every = 500

  # Peak (or only) learning rate; for any optimizer of Optax that takes one.
  config.learning_rate = 1e-3
  config.optimizer = ConfigDict()
  config.optimizer.name = 'adamw'
  config.optimizer.kwargs = ConfigDict({'weight_decay': 1e-4}, type_safe=False)
  # 'constant' or a schedule of Optax; arguments named *_steps may be given as shares of the run.
  config.schedule = ConfigDict()
  config.schedule.name = 'cosine_decay_schedule'
  config.schedule.kwargs = ConfigDict({'decay_steps': 1.0}, type_safe=False)
  # Global norm that gradients are clipped to; 0 is no clipping.
  config.clip_norm = 0.0

  # Which structures a shared pool is trained on:
  # fixed | listed | uniform | bernoulli | sandwich | sorted
  config.sampler = ConfigDict()
  config.sampler.name = 'uniform'
  # For fixed and listed, as text: ('1011', '0011').
  config.sampler.structures = ()
  # For bernoulli: keep rate of the last site, and how rates fall over depth, all gates of a site
  # alike (uniform | linear | exponential); or one rate per gate, which replaces both.
  config.sampler.keep_rate = 0.5
  config.sampler.keep_ramp = 'uniform'
  config.sampler.gate_keep_rates = ()
  # For bernoulli: share of the run over which the rates fall from 1, and how (linear | cosine:
  # slowly at both ends | step: at its end).
  config.sampler.ramp = 0.0
  config.sampler.ramp_shape = 'linear'

  # Exp 1.
  config.sweep = ConfigDict()
  # 'standalone': train every structure alone. 'shared': train one pool, rank all in it.
  config.sweep.modes = ('standalone', 'shared')
  # Passes over the training set of the shared pool, at batch_size·structures_per_step a step over
  # the K structures of a step; 0 is as many as `train.epochs`.
  config.sweep.shared_epochs = 0.0
  # How many structures count as the best, in recall, regret and pictures.
  config.sweep.top_k = 8
  # Successive halving of the standalone sweep: after each rung 1/halving of the structures go on,
  # each rung halving times as long; 0 trains all to the end. With shards, give each shard's command
  # again once all have finished a rung.
  config.sweep.halving = 0
  # Rungs of successive halving, the last one of the full length.
  config.sweep.rungs = 3

  # A searched set for spaces too large to enumerate: '' (all 2^n), 'evolution' or 'random'.
  config.search = ConfigDict()
  config.search.method = ''
  # Structures evaluated in all, and in each generation.
  config.search.budget = 2048
  config.search.population = 128

  # Exp 2.
  config.cotrain = ConfigDict()
  # K. 0 with listed structures is all of them.
  config.cotrain.top_k = 4
  # Passes over the training set of the short shared sweep that finds the structures, if none are
  # given below.
  config.cotrain.sweep_epochs = 10.0
  # Structures to co-train, as text: ('110111', '111111'); or an Exp 1 run directory whose top K are
  # taken. With neither, a short shared sweep finds them.
  config.structures = ()
  config.structures_from = ''

  # Exp 3. Keep rates are those of `sampler`, uniform or bernoulli; `train.distill` above 0 trains
  # each variant with random structures a second time, distilled from all-on.
  config.stochastic = ConfigDict()
  # How structures are drawn: 'conditional' (one for each slot and step) and 'per_sample' (one for
  # each example: every gate runs on a random subset of fixed size of the batch).
  config.stochastic.modes = ('conditional', 'per_sample')
  # 'none', or 'inverse': in training what a gate adds is divided by its keep probability.
  config.stochastic.rescale = 'none'
  # For per_sample: stages that a ramp over time is cut into; sizes are constant within a stage.
  config.stochastic.stages = 4
  # For per_sample: equal parts of a batch with a subset each. As many devices may split a batch.
  config.stochastic.parts = 1
  # Structures that each pool is judged by: all, or that many drawn at random and all-on.
  config.stochastic.num_structures = 1024

  # Exp 4. The dense network is `model`, a transformer, and the others are made from it.
  config.experts = ConfigDict()
  # Networks beside the dense one: softmax | factorised | marginal | random (routers over the
  # structures of the feed-forward layers, of `model.num_chunks` chunks), 'single' (the best static
  # structure in a pool trained with `sampler`) and 'moe' (experts of their own weights).
  config.experts.variants = ('softmax', 'factorised', 'marginal', 'random', 'single', 'moe')
  # What each has as much of as the dense network: 'flops' (active) and 'params', one network each.
  config.experts.budgets = ('flops', 'params')
  # Structures of each token, and whether their weights sum to 1 or are the router's probabilities.
  config.experts.top_k = 2
  config.experts.renormalise = False
  # For softmax and random: structures to choose from, as text of num_chunks − 1 gates; none is all.
  config.experts.structures = ()
  # Share of tokens that each feed-forward layer computes; below 1 tokens get gates of their own.
  config.experts.keep = 1.0
  # One router for all layers instead of one for each.
  config.experts.shared_router = False
  # Of moe: experts in each layer, and experts of each token.
  config.experts.num_experts = 8
  config.experts.expert_top_k = 2
  # Static structures among which the best single one is found: all, or that many at random.
  config.experts.num_structures = 1024

  # How routers are kept balanced, in Exp 4 and DNA: weights of the load-balance loss and of the
  # z-loss, and by how much a step moves the biases of choices (in DNA: of the identities, towards
  # `dna.skip`) and those of tokens' own gates (towards `experts.keep`); 0 is none.
  config.balance = ConfigDict()
  config.balance.auxiliary = 0.01
  config.balance.z = 0.001
  config.balance.bias_rate = 0.0
  config.balance.keep_rate = 0.05

  # DNA. Width, heads, hidden units, positions and units are those of `model`, a transformer, whose
  # num_blocks are the layers of the dense network it is compared with.
  config.dna = ConfigDict()
  # Dense sublayers first (attention and feed-forward in turn), then steps over one pool.
  config.dna.num_backbone = 2
  config.dna.num_steps = 4
  # Modules in the pool; a block is a whole transformer layer, an identity computes nothing.
  config.dna.attention = 4
  config.dna.mlp = 4
  config.dna.block = 0
  config.dna.identity = 2
  # Modules of each token and step, and whether their weights sum to 1 or are the router's
  # probabilities.
  config.dna.top_k = 2
  config.dna.renormalise = False
  # Whether the weight of a block scales each of its two branches instead of their sum.
  config.dna.rescale_inside = False
  # Target share of choices that fall on identities, for a second DNA and a shallow dense network;
  # 0 trains neither. `balance.bias_rate` must be above 0 for it.
  config.dna.skip = 0.3
  # Test examples whose tokens' paths are analysed.
  config.dna.examples = 256

  # Exp 5. `model` is trained from scratch for `train.epochs`, and from narrow copies of itself.
  config.booster = ConfigDict()
  # Ways to start, beside training from scratch: 'clusters' (a narrow copy on each cluster of the
  # data), 'random_split' (on each part of a random split), 'one_narrow' (one copy on all data) and
  # 'untrained' (a copy that was never trained).
  config.booster.variants = ('clusters', 'random_split', 'one_narrow', 'untrained')
  # Narrow copies, which share the batch of a step, so that all of them together cost what one does.
  config.booster.num_models = 4
  # Share of the width that a copy has; and the structure of `model` that it is, as text: blocks
  # whose gates are off in it are left out. '' is all-on.
  config.booster.width = 0.5
  config.booster.structure = ''
  # Passes over the training set: of the copies, all together, and then of the large model.
  config.booster.epochs = 5.0
  config.booster.large_epochs = 5.0
  # Learning rates: of copies that share a batch (the noise of small batches makes Adam's steps
  # short, so about the square root of their number more), of one narrow copy alone, and of the
  # large model after them; 0 is `learning_rate`. The large model follows `schedule`, as from
  # scratch; the copies one of their own, in which they need not come to rest.
  config.booster.learning_rate = 0.0
  config.booster.lone_learning_rate = 0.0
  config.booster.large_learning_rate = 0.0
  config.booster.schedule = ConfigDict()
  config.booster.schedule.name = 'warmup_constant_schedule'
  config.booster.schedule.kwargs = ConfigDict({'warmup_steps': 0.05}, type_safe=False)
  # Passes, of all copies together, after which they are replaced by their mean; 0 is never.
  config.booster.sync_epochs = 0.5
  # How the copies become one: 'average', 'pack' (their strongest units side by side) or 'best' (on
  # training examples).
  config.booster.join = 'average'
  # Whether the optimizer's state is taken along; not with 'pack', which has none.
  config.booster.optimizer_state = True
  # How far the shares of copied units differ, in [0, 1).
  config.booster.unequal = 0.5
  # What is clustered: 'inputs' (pixels, columns, or n-grams of text) or 'embedding' (of a narrow
  # model trained for `embedding_epochs`); and whether clusters are made of equal sizes.
  config.booster.features = 'inputs'
  config.booster.embedding_epochs = 0.5
  config.booster.balanced = True
  # Whether every copy is a process of its own at its own pace, never synchronised. The large model
  # begins when the share `quorum` of them are done or all have ended, with the newest checkpoint of
  # each.
  config.booster.asynchronous = False
  config.booster.quorum = 0.75

  # Compression. What starts from the network of `train.epochs` takes `compress.epochs` +
  # `compress.tune_epochs` more, each time with the learning rate and schedule from their beginning.
  config.compress = ConfigDict()
  # What is removed: 'weight', 'unit' (hidden units and attention heads) or 'gate' (residual ones).
  config.compress.level = 'weight'
  # Of 'unit': whether the numbers of a flattened input (of dense_stack and mlp) are units too.
  config.compress.inputs = False
  # Passes over the training set in which variational dropout learns the noise, and those of what it
  # leaves, without noise; 0 is none. Magnitude pruning tunes what it leaves for both together.
  config.compress.epochs = 10.0
  config.compress.tune_epochs = 10.0
  # Weight of the divergence from the prior, and the share of the run over which it rises from 0.
  config.compress.kl = 1.0
  config.compress.ramp = 0.5
  # log σ² at the start, and how many times faster than the rest it is learnt (by Adam).
  config.compress.log_variance = -8.0
  config.compress.variance_rate = 20.0
  # log α above which a weight, unit or gate is removed.
  config.compress.threshold = 3.0
  # Shares that magnitude pruning removes, a network each, beside the one that keeps as many as
  # variational dropout.
  config.compress.sparsities = (0.5, 0.8, 0.9, 0.95)
  # Weight in [0, 1] of what a teacher says of each training example, beside its label, in the
  # training of what is left; the temperature that softens both; and how many epochs more than the
  # network that all start from the teacher takes: enough to know better, too few to overfit.
  config.compress.distill = 0.0
  config.compress.temperature = 2.0
  config.compress.teacher_epochs = 0.0
  # 'global' compares the magnitudes of all layers, 'layer' removes the same share of each; of units
  # always the latter.
  config.compress.scope = 'global'

  # 'I/N' does part I (from 0) of N of a sweep and leaves the rest to other processes; run again
  # without it to merge. Not part of a run's identity.
  config.shard = ''

  # A misspelt option is refused; what Optax or a model of your own takes is not known here.
  config.lock()
  for part in (config.model, config.optimizer, config.schedule, config.booster.schedule):
    part.kwargs.unlock()
  return config
