"""Every option, with its default. Other configs override a few; so does the command line.

  additive-jax --config=exp2 --config.learning_rate=3e-4

A key that is not in this file is refused, and so is a value of another type, or one that is not
allowed. The file is written by `python tests/options_page.py`.
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
  # from small ones), 'compress' (what a network can do without, by variational dropout) or 'prune'
  # (the smaller network within one, under a budget).
  config.experiment = 'cotrain'
  # First seed. A seed names the initial pool, the order of the data and the draws of structures. An
  # integer from 0 to 2^32 − 1.
  config.seed = 0
  # Seeds run: seed, seed + 1, … Intervals in tables and pictures are over them. 1 to 10,000.
  config.num_seeds = 3

  # What is learnt.
  config.data = ConfigDict()
  # digits | stdlib | idx:DIR | text:PATH | tabular:NAME | tfds:NAME | file:PATH (a table: CSV,
  # Parquet or NPZ) | images:DIR (DIR/class/*.png, or DIR/train/class/*.png and DIR/test)
  config.data.name = 'digits'
  # Tokens of one example of text. 1 to 1,000,000.
  config.data.sequence_length = 128
  # Of text, what makes tokens of it: a tokenizer.json, a directory with one, such as that of a
  # pretrained network, or a GGUF file; '' is bytes. Documents, which are files, or lines of .jsonl
  # files with a 'text', are packed into examples and do not see each other.
  config.data.tokenizer = ''
  # Where TensorFlow Datasets keeps its sets; '' is its own default.
  config.data.data_dir = ''
  # Whether a TensorFlow Datasets set that is not there may be downloaded.
  config.data.download = False
  # Bytes up to which a set is kept on the device, 2 GiB; a larger one is read batch by batch. 0 to
  # 2^60.
  config.data.memory_limit = 2147483648
  # Share of the training part that is held out to choose by: structures, epochs, thresholds. -1 is
  # the source's own split, or else the last examples of the training part, as many as are tested
  # but a fifth at most. 0 is none: then what is chosen is chosen on the test split. -1, or a share
  # in [0, 1).
  config.data.valid = -1.0
  # Examples used of the training split, spaced evenly over it; 0 is all, and so is more than there
  # are of a text. 0 to 1,000,000,000.
  config.data.train_examples = 0
  # Examples used of the test split, likewise. 0 to 1,000,000,000.
  config.data.test_examples = 0
  # Examples used of the split to choose by, likewise. 0 to 1,000,000,000.
  config.data.valid_examples = 0
  # Of a table, the column that is learnt; of a regression also several, with commas.
  config.data.target = ''
  # Of a table, the columns that it is learnt from, with commas; '' is all others.
  config.data.columns = ''
  # Of a table, what becomes of values that are missing: they are refused, their rows are left out
  # ('drop'), or those that are learnt from are filled ('fill'): numbers by the mean of the training
  # rows, with an input more that says where, texts by no category. One of refuse, drop, fill.
  config.data.missing = 'refuse'
  # Of a table, the column of the rows' weights; '' is none.
  config.data.weight = ''
  # Of a table, the column that says of each row 'train', 'valid' or 'test'; '' is none: a fifth of
  # the rows, drawn with a fixed seed, tests.
  config.data.split = ''
  # Of a table, what its target is; '' is a classification where the target is text or has at most
  # 20 different whole numbers, and else a regression. One of '', classification, regression,
  # language.
  config.data.task = ''
  # What changes the examples of each training step at random, in turn: images are moved ('crop')
  # and mirrored ('flip'), and examples mixed with others of their batch ('mixup'). Some of crop,
  # flip, mixup.
  config.data.augment = ()
  # Pixels that crop moves an image by, at most; 0 is an eighth of its height. 0 to 10,000.
  config.data.crop_pixels = 0
  # Probability that flip mirrors an image. A share in [0, 1].
  config.data.flip_rate = 0.5
  # Of mixup, α of the Beta(α, α) that shares are drawn from. A positive number up to 1,000,000.
  config.data.mixup_alpha = 0.2
  # Of folders of images, height and width that all are brought to; 0 is their own. 0 to 10,000.
  config.data.image_size = 0
  # Of folders of images, 1, 3 or 4; 0 is 1 where the first image is grey, and else 3. 0, 1, 3 or 4.
  config.data.channels = 0

  # The network.
  config.model = ConfigDict()
  # A transformer classifies image patches, or is a causal model of text; 'module:Class' is a
  # network of your own, which is made with `kwargs` and num_classes alone; of one that takes none,
  # such as additive_jax.models:Decoder, num_tokens is the size of the vocabulary. One of mlp,
  # dense_stack, transformer, convnet, lenet, vgg, or module:Class.
  config.model.name = 'mlp'
  # Kinds of gates that are chosen; those of other kinds stay on. Some of residual, sub_activation,
  # lane, each once.
  config.model.gates = ('residual',)
  # Chunks that the sub-activation gates of a branch join: one gate less than chunks. 1 to 10,000.
  config.model.num_chunks = 4
  # Lanes that lane gates join; hidden units and attention heads are split over them. 1 to 10,000.
  config.model.num_lanes = 2
  # Residual blocks of mlp; layers of transformer, an attention and a feed-forward site each. 1 to
  # 1,000.
  config.model.num_blocks = 6
  # Width of the stream, of mlp and transformer. 1 to 1,000,000.
  config.model.width = 64
  # Hidden units of a feed-forward branch: one number for all, or one per block. Of dense_stack
  # those of each hidden layer: (300, 100). Sizes of 1 to 1,000,000.
  config.model.hidden = (128,)
  # Attention heads, of transformer. 1 to 10,000.
  config.model.num_heads = 4
  # Side of the square patches that a transformer cuts images into. 1 to 10,000.
  config.model.patch_size = 2
  # How a transformer knows the order of its tokens. One of learned, rope.
  config.model.positions = 'learned'
  # Feed-forward unit of a transformer. One of gelu, relu, swiglu.
  config.model.unit = 'gelu'
  # Probability that training drops a number after each dense layer but those of queries, keys,
  # values and logits, and after the embedding, of mlp and transformer. A share in [0, 1).
  config.model.dropout = 0.0
  # Channels of each stage, of convnet and vgg. Sizes of 1 to 1,000,000.
  config.model.channels = (16, 32)
  # Residual blocks of each stage, of convnet. 1 to 1,000.
  config.model.blocks_per_stage = 2
  # What a network of your own is made with.
  config.model.kwargs = ConfigDict()

  # What is minimised, and what networks are judged by; the data says which task it is.
  config.task = ConfigDict()
  # In place of the task's own, which '' is: in a regression 'squared', 'absolute' or 'huber'. One
  # of '', cross_entropy, sigmoid, squared, absolute, huber.
  config.task.loss = ''
  # In place of the task's own, the first one the headline: of a classification 'accuracy',
  # 'f1_macro', 'top5' or of another number; of language also 'perplexity'; of a regression 'r2',
  # 'mae', 'rmse'; of binary 'accuracy', 'f1'; of multi_label 'f1_micro', 'f1_macro', 'exact_match',
  # 'accuracy'.
  config.task.metrics = ()
  # 'loss', or the metric by which structures are chosen and ranked.
  config.task.rank_by = 'loss'
  # The share of each label that is spread over all classes, in training and in the loss judged. A
  # share in [0, 1).
  config.task.label_smoothing = 0.0
  # What the loss of an example or token counts by its class, a number for each; () is 1. Numbers
  # from 0.
  config.task.class_weights = ()
  # The label that does not count, such as that of padding: '-100'; '' is none. An integer as text,
  # such as '-100', or ''.
  config.task.ignore_label = ''

  # Training of pools and of structures alone.
  config.train = ConfigDict()
  # Passes over the training set, at batch_size examples a step; a pool passes K times as many. A
  # positive number up to 1,000,000.
  config.train.epochs = 10.0
  # Examples of each structure and step. 1 to 1,000,000.
  config.train.batch_size = 128
  # K, structures that a pool trains in each step. Co-training takes its own number of them. 1 to
  # 10,000.
  config.train.structures_per_step = 4
  # Whether the K structures of a step share one batch instead of having one each.
  config.train.shared_batch = False
  # How the gradients of a step become one: 'coverage' divides each parameter's by the number of
  # structures that used it. One of mean, coverage.
  config.train.average = 'mean'
  # How devices average. One of psum, ring.
  config.train.collective = 'psum'
  # Devices that experts of their own weights, or the modules of a DNA, are spread over: each holds
  # and runs as many of them. A number that divides the devices and the experts; 1: all have all. 1
  # to 1,000,000. Not part of a run's identity.
  config.train.expert_devices = 1
  # Devices that share out every parameter, its gradient and what the optimizer keeps of it, and the
  # examples of a batch; a site gathers its parameters to run. A number that divides the devices and
  # the batch; 1: each device has all. 1 to 1,000,000. Not part of a run's identity.
  config.train.fsdp_devices = 1
  # Devices that share out the heads and hidden units of every branch, and the work on them. A
  # number that divides the devices and both; what has neither is kept in parts and gathered. 1 to
  # 1,000,000. Not part of a run's identity.
  config.train.tensor_devices = 1
  # Whether what the optimizer keeps is split over all devices of a pool's mesh, instead of each of
  # them having a copy (ZeRO, stage 1); the numbers stay the same. Not part of a run's identity.
  config.train.zero = False
  # Whether what the optimizer keeps lies in host memory, from where each step fetches it: a copy
  # for each device, or with `zero` a part for each. Not part of a run's identity.
  config.train.offload = False
  # Devices that the sites of one network are spread over in stages, as a pipeline: a number that
  # divides the devices and, times pipe_repeats, the sites, which must be alike from stage to stage;
  # 1: all devices have all. 1 to 1,000,000. Not part of a run's identity.
  config.train.pipe_devices = 1
  # Parts of a slot's batch that go through the stages one after the other. 1 to 10,000. Not part of
  # a run's identity.
  config.train.microbatches = 4
  # 'gpipe': one stage on each device; 'circular': pipe_repeats of them, and microbatches a multiple
  # of pipe_devices, for a shorter bubble at more traffic. One of gpipe, circular. Not part of a
  # run's identity.
  config.train.pipe_schedule = 'gpipe'
  # Stages on each device, of 'circular'. 1 to 10,000. Not part of a run's identity.
  config.train.pipe_repeats = 1
  # Weight of in-place distillation from all-on; 0 is none. A share in [0, 1].
  config.train.distill = 0.0
  # Global norm that the gradient of each structure of a step is clipped to, before they are
  # averaged: one bad batch then moves the pool by no more than any other; 0 is no clipping. 0 to
  # 1,000,000.
  config.train.slot_clip_norm = 0.0
  # What branches, embed and readout compute in: 'float32' or 'bfloat16'. Parameters, optimizer, the
  # stream, losses, softmax, routers and the statistics of norms are float32 in any case, and so is
  # all judging. One of float32, bfloat16.
  config.train.dtype = 'float32'
  # Pieces of each batch that go through the network one after the other, for the memory of one;
  # their gradients are averaged to that of the batch. 1 to 10,000.
  config.train.accumulate = 1
  # Decay of a mean of the pool over the steps, such as 0.999, which is judged beside the pool; at
  # most (1 + t) / (10 + t) in step t, so that early steps are soon forgotten. 0 keeps none. A share
  # in [0, 1).
  config.train.ema = 0.0
  # What multiplies the learning rate, by a regular expression of the paths of leaves: {'embed':
  # 0.1, 'block_0.*/kernel': 2.0}. Where several fit a leaf, it is their product.
  config.train.learning_rates = ConfigDict()
  # Parts that do not learn: regular expressions of their paths, ('embed', 'block_00').
  config.train.frozen = ()
  # Rank of what matrices change by, for the memory of that; 0 is any, see `train.low_rank`. 0 to
  # 10,000.
  config.train.low_rank = 0
  # Steps from point to point of curves, the most in a device call; 0: 40 points, 50 at most. 0 to
  # 10,000.
  config.train.log_every = 0
  # Steps between two checkpoints. 1 to 1,000,000,000.
  config.train.checkpoint_every = 500

  # Where the pool is from that all trainings start from: a run directory, a directory of its
  # checkpoints, or what Flax (msgpack, safetensors) or Orbax has written; '' is that of each seed.
  # Exp 5, which compares beginning untrained with growing from small networks, takes none. A run's
  # identity has the numbers of the pool, not the path: another pool is another directory.
  config.init_from = ''
  # A network of others, in place of `model` and `init_from`: a Hugging Face directory (Llama,
  # SmolLM, Mistral, Qwen2, Qwen3, GPT-2, BERT, ViT) or a GGUF file. Text is tokenised by its
  # tokenizer. Not part of a run's identity.
  config.pretrained = ''
  # Peak (or only) learning rate. A positive number up to 1,000.
  config.learning_rate = 0.001

  # The optimizer, of Optax.
  config.optimizer = ConfigDict()
  # Any optimizer of Optax or optax.contrib that takes a learning rate.
  config.optimizer.name = 'adamw'
  # Its other arguments.
  config.optimizer.kwargs = ConfigDict({'weight_decay': 0.0001}, type_safe=False)

  # How the learning rate changes over the run.
  config.schedule = ConfigDict()
  # 'constant', or a schedule of Optax.
  config.schedule.name = 'cosine_decay_schedule'
  # Its arguments beside the rate; those named *_steps may be given as shares of the run.
  config.schedule.kwargs = ConfigDict({'decay_steps': 1.0}, type_safe=False)

  # Global norm that gradients are clipped to; 0 is no clipping. 0 to 1,000,000.
  config.clip_norm = 0.0

  # Which structures a shared pool is trained on.
  config.sampler = ConfigDict()
  # The distribution that structures are drawn from; with 'fixed' and 'listed' they are given.
  # 'fair' draws complementary pairs, 'progressive' first all-on and then ever smaller structures.
  # One of fixed, listed, uniform, bernoulli, sandwich, sorted, fair, progressive.
  config.sampler.name = 'uniform'
  # For fixed and listed: ('1011', '0011'). Structures as text, gate 0 first, such as ('1011',
  # '0011').
  config.sampler.structures = ()
  # For bernoulli: keep rate of the last site. A share in [0, 1].
  config.sampler.keep_rate = 0.5
  # For bernoulli: how keep rates fall over depth, all gates of a site alike. One of uniform,
  # linear, exponential.
  config.sampler.keep_ramp = 'uniform'
  # For bernoulli: one keep rate per gate, in place of keep_rate and keep_ramp. Shares in [0, 1].
  config.sampler.gate_keep_rates = ()
  # Share of the run: for bernoulli, over which the rates fall from 1; for progressive, over which
  # the smallest structure that is drawn falls from all-on to all-off. A share in [0, 1].
  config.sampler.ramp = 0.0
  # For bernoulli: how they fall over the run; 'cosine' slowly at both ends, 'step' at its end. One
  # of linear, cosine, step.
  config.sampler.ramp_shape = 'linear'

  # Exp 1.
  config.sweep = ConfigDict()
  # 'standalone': train every structure alone. 'shared': train one pool, rank all in it. Some of
  # standalone, shared, each once.
  config.sweep.modes = ('standalone', 'shared')
  # Passes over the training set of the shared pool, at batch_size·structures_per_step a step over
  # the K structures of a step; 0 is as many as `train.epochs`. 0 to 1,000,000.
  config.sweep.shared_epochs = 0.0
  # Share of the shared pool's steps after which it is split in two, along the gate about which
  # gradients of structures disagree most; each half takes half of the other steps, and structures
  # are judged each in its own. Checkpoints shared-seedN-off and -on are the halves. 0 is no split.
  # A share in [0, 1).
  config.sweep.split_after = 0.0
  # How many structures count as the best, in recall, regret and pictures. 1 to 1,000,000.
  config.sweep.top_k = 8
  # Successive halving of the standalone sweep: after each rung 1/halving of the structures go on,
  # each rung halving times as long; 0 trains all to the end. With shards, give each shard's command
  # again once all have finished a rung. 0, or 2 to 1,000.
  config.sweep.halving = 0
  # Rungs of successive halving, the last one of the full length. 1 to 10,000.
  config.sweep.rungs = 3
  # Keeps every structure that is trained alone, a file of the size of the pool each, so that it can
  # be exported (`additive-jax export RUN --alone`). The shared pools are kept always.
  config.sweep.keep_alone = False

  # A searched set, for spaces too large to enumerate.
  config.search = ConfigDict()
  # How structures are searched; '' is not at all, but all 2^n: except in Exp 1, which of more than
  # 4,096 networks finds those to train alone by 'evolution' in the shared pool. One of '',
  # evolution, random.
  config.search.method = ''
  # Structures evaluated in all. 1 to 1,000,000,000.
  config.search.budget = 2048
  # Structures evaluated in each generation. 1 to 1,000,000.
  config.search.population = 128

  # Exp 2.
  config.cotrain = ConfigDict()
  # K. With listed structures 0, or the default, is all of them. 0 to 10,000.
  config.cotrain.top_k = 4
  # Passes over the training set of the short shared sweep that finds the structures, if none are
  # given below. A positive number up to 1,000,000.
  config.cotrain.sweep_epochs = 10.0
  # Whether each structure scales inputs and outputs of every kernel by vectors of its own (rank-1
  # adapters, as in TabM), for a few more parameters.
  config.cotrain.adapters = False

  # Structures to co-train: ('110111', '111111'). With none, and no directory below, a short shared
  # sweep finds them. Structures as text, gate 0 first, such as ('1011', '0011').
  config.structures = ()
  # An Exp 1 run directory whose top K are co-trained.
  config.structures_from = ''

  # Exp 3. Keep rates are those of `sampler`, uniform or bernoulli; `train.distill` above 0 trains
  # each variant with random structures a second time, distilled from all-on.
  config.stochastic = ConfigDict()
  # How structures are drawn: one for each slot and step ('conditional'), or one for each example:
  # every gate runs on a random subset of fixed size of the batch ('per_sample'). Some of
  # conditional, per_sample, each once.
  config.stochastic.modes = ('conditional', 'per_sample')
  # 'inverse': in training what a gate adds is divided by its keep probability. One of none,
  # inverse.
  config.stochastic.rescale = 'none'
  # For per_sample: stages that a ramp over time is cut into; sizes are constant within a stage. 1
  # to 10,000.
  config.stochastic.stages = 4
  # For per_sample: equal parts of a batch with a subset each. As many devices may split a batch. 1
  # to 1,000,000.
  config.stochastic.parts = 1
  # Structures that each pool is judged by: all, or that many drawn at random and all-on. 1 to
  # 1,000,000.
  config.stochastic.num_structures = 1024

  # Exp 4. The dense network is `model`, a transformer, and the others are made from it.
  config.experts = ConfigDict()
  # Networks beside the dense one: four routers over the structures of the feed-forward layers, of
  # `model.num_chunks` chunks; 'single', the best static structure in a pool trained with `sampler`;
  # and 'moe', experts of their own weights. Some of softmax, factorised, marginal, random, single,
  # moe, each once.
  config.experts.variants = ('softmax', 'factorised', 'marginal', 'random', 'single', 'moe')
  # What each has as much of as the dense network, one network each; FLOPs are the active ones. Some
  # of flops, params, each once.
  config.experts.budgets = ('flops', 'params')
  # Structures of each token. 1 to 1,000,000.
  config.experts.top_k = 2
  # Whether the weights of a token's structures sum to 1, or are the router's probabilities.
  config.experts.renormalise = False
  # For softmax and random: structures to choose from, of num_chunks − 1 gates; none is all.
  # Structures as text, gate 0 first, such as ('1011', '0011').
  config.experts.structures = ()
  # Share of tokens that each feed-forward layer computes; below 1 tokens get gates of their own. A
  # share in (0, 1].
  config.experts.keep = 1.0
  # One router for all layers instead of one for each.
  config.experts.shared_router = False
  # Of moe: experts in each layer. 1 to 10,000.
  config.experts.num_experts = 8
  # Of moe: experts of each token. 1 to 1,000,000.
  config.experts.expert_top_k = 2
  # Static structures among which the best single one is found: all, or that many at random. 1 to
  # 1,000,000.
  config.experts.num_structures = 1024

  # How routers are kept balanced, in Exp 4 and DNA.
  config.balance = ConfigDict()
  # Weight of the load-balance loss; 0 is none. 0 to 1,000,000.
  config.balance.auxiliary = 0.01
  # Weight of the z-loss; 0 is none. 0 to 1,000,000.
  config.balance.z = 0.001
  # By how much a step moves the biases of choices, in DNA those of the identities, towards
  # `dna.skip`; 0 is not at all. 0 to 1,000,000.
  config.balance.bias_rate = 0.0
  # By how much a step moves the biases of tokens' own gates, towards `experts.keep`. 0 to
  # 1,000,000.
  config.balance.keep_rate = 0.05
  # What multiplies the learning rate of routers, beside `train.learning_rates`. 0 to 1,000.
  config.balance.router_rate = 1.0

  # DNA. Width, heads, hidden units, positions and units are those of `model`, a transformer, whose
  # num_blocks are the layers of the dense network it is compared with.
  config.dna = ConfigDict()
  # Dense sublayers that come first, attention and feed-forward in turn. 0 to 10,000.
  config.dna.num_backbone = 2
  # Steps over one pool of modules, after them. 1 to 10,000.
  config.dna.num_steps = 4
  # Attention modules in the pool. 0 to 10,000.
  config.dna.attention = 4
  # Feed-forward modules in the pool. 0 to 10,000.
  config.dna.mlp = 4
  # Modules in the pool that are whole transformer layers. 0 to 10,000.
  config.dna.block = 0
  # Modules in the pool that compute nothing. 0 to 10,000.
  config.dna.identity = 2
  # Modules of each token and step. 1 to 1,000,000.
  config.dna.top_k = 2
  # Whether the weights of a token's modules sum to 1, or are the router's probabilities.
  config.dna.renormalise = False
  # Whether the weight of a block scales each of its two branches instead of their sum.
  config.dna.rescale_inside = False
  # Whether one layer makes keys and values of all tokens for all modules, which tokens choose for
  # queries and outputs; else a module attends among those that chose it.
  config.dna.shared_keys = False
  # Target share of choices that fall on identities, for a second DNA and a shallow dense network; 0
  # trains neither. `balance.bias_rate` must be above 0 for it. A share in [0, 1).
  config.dna.skip = 0.3
  # Test examples whose tokens' paths are analysed. 1 to 1,000,000.
  config.dna.examples = 256

  # Exp 5. `model` is trained from scratch for `train.epochs`, and from narrow copies of itself.
  config.booster = ConfigDict()
  # Ways to start, beside training from scratch: 'clusters' (a narrow copy on each cluster of the
  # data), 'random_split' (on each part of a random split), 'one_narrow' (one copy on all data) and
  # 'untrained' (a copy that was never trained). Some of clusters, random_split, one_narrow,
  # untrained, each once.
  config.booster.variants = ('clusters', 'random_split', 'one_narrow', 'untrained')
  # Narrow copies, which share the batch of a step, so that all of them together cost what one does.
  # 1 to 10,000.
  config.booster.num_models = 4
  # Share of the width that a copy has. A share in (0, 1].
  config.booster.width = 0.5
  # The structure of `model` that a copy is: blocks whose gates are off in it are left out. '' is
  # all-on. A structure as text, or ''.
  config.booster.structure = ''
  # Passes over the training set of the copies, all together. A positive number up to 1,000,000.
  config.booster.epochs = 5.0
  # Passes over the training set of the large model after them. A positive number up to 1,000,000.
  config.booster.large_epochs = 5.0
  # Learning rate of copies that share a batch; 0 is `learning_rate`. The noise of small batches
  # makes Adam's steps short, so about the square root of their number more suits them. 0 to 1,000.
  config.booster.learning_rate = 0.0
  # Learning rate of one narrow copy alone; 0 is `learning_rate`. 0 to 1,000.
  config.booster.lone_learning_rate = 0.0
  # Learning rate of the large model, which follows `schedule`, as from scratch; 0 is
  # `learning_rate`. 0 to 1,000.
  config.booster.large_learning_rate = 0.0

  # How the learning rate of the copies changes: they need not come to rest.
  config.booster.schedule = ConfigDict()
  # 'constant', or a schedule of Optax.
  config.booster.schedule.name = 'warmup_constant_schedule'
  # Its arguments beside the rate; those named *_steps may be given as shares of the run.
  config.booster.schedule.kwargs = ConfigDict({'warmup_steps': 0.05}, type_safe=False)
  # Passes, of all copies together, after which they are replaced by their mean; 0 is never. 0 to
  # 1,000,000.
  config.booster.sync_epochs = 0.5
  # How the copies become one: 'pack' puts their strongest units side by side, 'best' takes the one
  # that is best on training examples. One of average, pack, best.
  config.booster.join = 'average'
  # Whether the optimizer's state is taken along; not with 'pack', which has none.
  config.booster.optimizer_state = True
  # How far the shares of copied units differ. A share in [0, 1).
  config.booster.unequal = 0.5
  # What is clustered: 'inputs' (pixels, columns, or n-grams of text) or 'embedding' (of a narrow
  # model trained for `embedding_epochs`). One of inputs, embedding.
  config.booster.features = 'inputs'
  # Passes over the training set of the model whose embedding is clustered. A positive number up to
  # 1,000,000.
  config.booster.embedding_epochs = 0.5
  # Whether clusters are made of equal sizes.
  config.booster.balanced = True
  # Whether every copy is a process of its own at its own pace, never synchronised.
  config.booster.asynchronous = False
  # Of copies that are processes: the large model begins when that share of them are done or all
  # have ended, with the newest checkpoint of each. A share in (0, 1].
  config.booster.quorum = 0.75

  # Compression. What starts from the network of `train.epochs` takes `compress.epochs` +
  # `compress.tune_epochs` more, each time with the learning rate and schedule from their beginning.
  config.compress = ConfigDict()
  # What is removed; units are hidden units and attention heads, gates residual ones. One of weight,
  # unit, gate.
  config.compress.level = 'weight'
  # Of 'unit': whether the numbers of a flattened input (of dense_stack and mlp) are units too.
  config.compress.inputs = False
  # Passes over the training set in which variational dropout learns the noise. A positive number up
  # to 1,000,000.
  config.compress.epochs = 10.0
  # Passes of what it leaves, without noise; 0 is none. Magnitude pruning tunes what it leaves for
  # both together. 0 to 1,000,000.
  config.compress.tune_epochs = 10.0
  # Weight of the divergence from the prior. 0 to 1,000,000.
  config.compress.kl = 1.0
  # Share of the run over which that weight rises from 0. A share in [0, 1].
  config.compress.ramp = 0.5
  # log σ² at the start. -100 to 100.
  config.compress.log_variance = -8.0
  # How many times faster than the rest log σ² is learnt (by Adam). A positive number up to
  # 1,000,000.
  config.compress.variance_rate = 20.0
  # log α above which a weight, unit or gate is removed. -100 to 100.
  config.compress.threshold = 3.0
  # What magnitude pruning removes, a network each, beside the one that keeps as many as variational
  # dropout. Shares in (0, 1), each once.
  config.compress.sparsities = (0.5, 0.8, 0.9, 0.95)
  # Per weight: what pruning by magnitude times input, while a network trains, removes, a network
  # each. Shares in (0, 1), each once.
  config.compress.gradual = ()
  # Passes that this takes; 0 is epochs + tune_epochs. 0 to 1,000,000.
  config.compress.gradual_epochs = 0.0
  # Share of them after which no more is removed. A share in (0, 1].
  config.compress.gradual_share = 0.6
  # What multiplies the learning rate there. A positive number up to 1,000.
  config.compress.gradual_rate = 1.0
  # Weight of what a teacher says of each training example, beside its label, in the training of
  # what is left. A share in [0, 1].
  config.compress.distill = 0.0
  # What softens both. A positive number up to 1,000,000.
  config.compress.temperature = 2.0
  # Epochs that the teacher takes more than the network that all start from: enough to know better,
  # too few to overfit. 0 to 1,000,000.
  config.compress.teacher_epochs = 0.0
  # 'global' compares the magnitudes of all layers, 'layer' removes the same share of each; of units
  # always the latter. One of global, layer.
  config.compress.scope = 'global'

  # Prune: a pool (trained, or `init_from` or `pretrained`) is searched under a budget, its best
  # structures are healed together and ranked again, and the best one is cut out and exported.
  config.prune = ConfigDict()
  # Share of what the full network costs, up to 1; above 1 that many of the unit. A positive number
  # up to 1,000,000.
  config.prune.budget = 0.6
  # The unit: 'flops' of an example's forward pass, 'params', or 'latency', seconds of an example's
  # forward pass, measured on this device. One of params, flops, latency.
  config.prune.cost = 'flops'
  # What a share is of: all of the network, or what the gates switch: of a language model its body
  # without the embedding. One of network, gates.
  config.prune.of = 'network'
  # How structures are searched; '' ranks all networks within the budget up to 4,096 of them, and is
  # 'bayesian' of more. One of '', leave_one_out, greedy, lazy_greedy, beam, evolution, bayesian,
  # surrogate, cosine, random.
  config.prune.method = ''
  # Methods that are shown beside it, each on the same calibration sets. Some of leave_one_out,
  # greedy, lazy_greedy, beam, evolution, bayesian, surrogate, cosine, random, each once, or none.
  config.prune.baselines = ()
  # The most evaluations that each method may make on a calibration set; 0 is what it takes. 0 to
  # 1,000,000,000.
  config.prune.evaluations = 0
  # Budgets in equal steps from all-on at which the methods are compared. 1 to 10,000.
  config.prune.levels = 3
  # Calibration sets, drawn from the split to choose by, which searches see one at a time; the
  # intervals of methods are over them. 1 to 10,000.
  config.prune.sets = 1
  # Examples of each; 0 is all of the split, with one set. 0 to 1,000,000,000.
  config.prune.calibration_examples = 0
  # Of what each of several sets has found, so many are ranked on the whole split. 1 to 10,000.
  config.prune.ranked = 64
  # K: the best structures, which are healed together in one pool, and ranked again after that. 1 to
  # 10,000.
  config.prune.candidates = 1
  # Whether the first of them is healed alone too, to compare; with several candidates.
  config.prune.alone = False
  # Passes over the training set of healing; 0 is none. 0 to 1,000,000.
  config.prune.heal_epochs = 2.0
  # Weight of what the full network before healing says, beside the labels; only with classes. Its
  # last streams are kept for all training examples, and what reads them out stays as it is. 0 is no
  # teacher. A share in [0, 1].
  config.prune.teacher = 0.5
  # What softens both. A positive number up to 1,000,000.
  config.prune.temperature = 1.0
  # Of the exported files of a pretrained network: 'float32', 'bfloat16' or 'float16'; '' is that of
  # the files it was loaded from, float32 of quantised ones. One of '', float32, bfloat16, float16.
  config.prune.dtype = ''
  # Continuations of test texts that are shown side by side, of a causal language model. 0 to
  # 10,000.
  config.prune.samples = 2
  # Tokens of each. 1 to 1,000,000.
  config.prune.sample_tokens = 32

  # Hours that a sweep, or the trainings of another experiment's stage, may take by the estimate
  # that is logged before they start: what would take longer is refused. 0 is no limit. 0 to
  # 1,000,000. Not part of a run's identity.
  config.limit = 12.0
  # 'I/N' does part I (from 0) of N of a sweep and leaves the rest to other processes; run again
  # without it to merge. I/N with 0 <= I < N, such as 0/4. Not part of a run's identity.
  config.shard = ''

  # A misspelt option is refused; what Optax or a model of your own takes is not known here.
  config.lock()
  for part in (config.model, config.optimizer, config.schedule, config.booster.schedule):
    part.kwargs.unlock()
  return config
