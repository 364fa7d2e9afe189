"""The options of each experiment, and all options together."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from additive_jax.compress.keep import SCOPES
from additive_jax.compress.parts import LEVELS
from additive_jax.experiments.options.general import (
  DataOptions,
  ModelOptions,
  OptimizerOptions,
  SamplerOptions,
  ScheduleOptions,
  SearchOptions,
  TaskOptions,
  TrainOptions,
)
from additive_jax.experiments.options.pruning import PruneOptions
from additive_jax.experiments.options.routed import BalanceOptions, DnaOptions, ExpertsOptions
from additive_jax.experiments.options.rules import (
  HALVING,
  SPARSITIES,
  STRUCTURE_OR_NONE,
  Count,
  Few,
  FewOrNone,
  Later,
  Logarithm,
  NotNegative,
  Placement,
  Positive,
  PositiveShare,
  Rate,
  RateOrNone,
  Seed,
  Shard,
  Share,
  ShareBelowOne,
  Structures,
  one_of,
  some_of,
)
from additive_jax.train.recipe import RESCALES

SAMPLING = ('conditional', 'per_sample')
STARTS = ('clusters', 'random_split', 'one_narrow', 'untrained')


@dataclasses.dataclass(frozen=True)
class SweepOptions:
  """Exp 1."""

  modes: Annotated[tuple[str, ...], some_of('standalone', 'shared')] = ('standalone', 'shared')
  """'standalone': train every structure alone. 'shared': train one pool, rank all in it."""
  shared_epochs: NotNegative = 0.0
  """Passes over the training set of the shared pool, at batch_size·structures_per_step a step over
  the K structures of a step; 0 is as many as `train.epochs`."""
  split_after: Later[ShareBelowOne] = 0.0
  """Share of the shared pool's steps after which it is split in two, along the gate about which
  gradients of structures disagree most; each half takes half of the other steps, and structures are
  judged each in its own. Checkpoints shared-seedN-off and -on are the halves. 0 is no split."""
  top_k: Count = 8
  """How many structures count as the best, in recall, regret and pictures."""
  halving: Annotated[int, HALVING] = 0
  """Successive halving of the standalone sweep: after each rung 1/halving of the structures go on,
  each rung halving times as long; 0 trains all to the end. With shards, give each shard's command
  again once all have finished a rung."""
  rungs: Few = 3
  """Rungs of successive halving, the last one of the full length."""
  keep_alone: Later[bool] = False
  """Keeps every structure that is trained alone, a file of the size of the pool each, so that it
  can be exported (`additive-jax export RUN --alone`). The shared pools are kept always."""


@dataclasses.dataclass(frozen=True)
class CotrainOptions:
  """Exp 2."""

  top_k: FewOrNone = 4
  """K. With listed structures 0, or the default, is all of them."""
  sweep_epochs: Positive = 10.0
  """Passes over the training set of the short shared sweep that finds the structures, if none are
  given below."""
  adapters: Later[bool] = False
  """Whether each structure scales inputs and outputs of every kernel by vectors of its own
  (rank-1 adapters, as in TabM), for a few more parameters."""


@dataclasses.dataclass(frozen=True)
class StochasticOptions:
  """Exp 3. Keep rates are those of `sampler`, uniform or bernoulli; `train.distill` above 0 trains
  each variant with random structures a second time, distilled from all-on."""

  modes: Annotated[tuple[str, ...], some_of(*SAMPLING)] = SAMPLING
  """How structures are drawn: one for each slot and step ('conditional'), or one for each example:
  every gate runs on a random subset of fixed size of the batch ('per_sample')."""
  rescale: Annotated[str, one_of(*RESCALES)] = 'none'
  """'inverse': in training what a gate adds is divided by its keep probability."""
  stages: Few = 4
  """For per_sample: stages that a ramp over time is cut into; sizes are constant within a stage."""
  parts: Count = 1
  """For per_sample: equal parts of a batch with a subset each. As many devices may split
  a batch."""
  num_structures: Count = 1024
  """Structures that each pool is judged by: all, or that many drawn at random and all-on."""


@dataclasses.dataclass(frozen=True)
class BoosterOptions:
  """Exp 5. `model` is trained from scratch for `train.epochs`, and from narrow copies of itself."""

  variants: Annotated[tuple[str, ...], some_of(*STARTS)] = STARTS
  """Ways to start, beside training from scratch: 'clusters' (a narrow copy on each cluster of the
  data), 'random_split' (on each part of a random split), 'one_narrow' (one copy on all data) and
  'untrained' (a copy that was never trained)."""
  num_models: Few = 4
  """Narrow copies, which share the batch of a step, so that all of them together cost what one
  does."""
  width: PositiveShare = 0.5
  """Share of the width that a copy has."""
  structure: Annotated[str, STRUCTURE_OR_NONE] = ''
  """The structure of `model` that a copy is: blocks whose gates are off in it are left out. '' is
  all-on."""
  epochs: Positive = 5.0
  """Passes over the training set of the copies, all together."""
  large_epochs: Positive = 5.0
  """Passes over the training set of the large model after them."""
  learning_rate: RateOrNone = 0.0
  """Learning rate of copies that share a batch; 0 is `learning_rate`. The noise of small batches
  makes Adam's steps short, so about the square root of their number more suits them."""
  lone_learning_rate: RateOrNone = 0.0
  """Learning rate of one narrow copy alone; 0 is `learning_rate`."""
  large_learning_rate: RateOrNone = 0.0
  """Learning rate of the large model, which follows `schedule`, as from scratch; 0 is
  `learning_rate`."""
  schedule: ScheduleOptions = dataclasses.field(
    default_factory=lambda: ScheduleOptions('warmup_constant_schedule', {'warmup_steps': 0.05})
  )
  """How the learning rate of the copies changes: they need not come to rest."""
  sync_epochs: NotNegative = 0.5
  """Passes, of all copies together, after which they are replaced by their mean; 0 is never."""
  join: Annotated[str, one_of('average', 'pack', 'best')] = 'average'
  """How the copies become one: 'pack' puts their strongest units side by side, 'best' takes the one
  that is best on training examples."""
  optimizer_state: bool = True
  """Whether the optimizer's state is taken along; not with 'pack', which has none."""
  unequal: ShareBelowOne = 0.5
  """How far the shares of copied units differ."""
  features: Annotated[str, one_of('inputs', 'embedding')] = 'inputs'
  """What is clustered: 'inputs' (pixels, columns, or n-grams of text) or 'embedding' (of a narrow
  model trained for `embedding_epochs`)."""
  embedding_epochs: Positive = 0.5
  """Passes over the training set of the model whose embedding is clustered."""
  balanced: bool = True
  """Whether clusters are made of equal sizes."""
  asynchronous: bool = False
  """Whether every copy is a process of its own at its own pace, never synchronised."""
  quorum: PositiveShare = 0.75
  """Of copies that are processes: the large model begins when that share of them are done or all
  have ended, with the newest checkpoint of each."""


@dataclasses.dataclass(frozen=True)
class CompressOptions:
  """Compression. What starts from the network of `train.epochs` takes `compress.epochs` +
  `compress.tune_epochs` more, each time with the learning rate and schedule from
  their beginning."""

  level: Annotated[str, one_of(*LEVELS)] = 'weight'
  """What is removed; units are hidden units and attention heads, gates residual ones."""
  inputs: bool = False
  """Of 'unit': whether the numbers of a flattened input (of dense_stack and mlp) are units too."""
  epochs: Positive = 10.0
  """Passes over the training set in which variational dropout learns the noise."""
  tune_epochs: NotNegative = 10.0
  """Passes of what it leaves, without noise; 0 is none. Magnitude pruning tunes what it leaves for
  both together."""
  kl: NotNegative = 1.0
  """Weight of the divergence from the prior."""
  ramp: Share = 0.5
  """Share of the run over which that weight rises from 0."""
  log_variance: Logarithm = -8.0
  """log σ² at the start."""
  variance_rate: Positive = 20.0
  """How many times faster than the rest log σ² is learnt (by Adam)."""
  threshold: Logarithm = 3.0
  """log α above which a weight, unit or gate is removed."""
  sparsities: Annotated[tuple[float, ...], SPARSITIES] = (0.5, 0.8, 0.9, 0.95)
  """What magnitude pruning removes, a network each, beside the one that keeps as many as
  variational dropout."""
  gradual: Later[Annotated[tuple[float, ...], SPARSITIES]] = ()
  """Per weight: what pruning by magnitude times input, while a network trains, removes, a network
  each."""
  gradual_epochs: Later[NotNegative] = 0.0
  """Passes that this takes; 0 is epochs + tune_epochs."""
  gradual_share: Later[PositiveShare] = 0.6
  """Share of them after which no more is removed."""
  gradual_rate: Later[Rate] = 1.0
  """What multiplies the learning rate there."""
  distill: Share = 0.0
  """Weight of what a teacher says of each training example, beside its label, in the training of
  what is left."""
  temperature: Positive = 2.0
  """What softens both."""
  teacher_epochs: NotNegative = 0.0
  """Epochs that the teacher takes more than the network that all start from: enough to know better,
  too few to overfit."""
  scope: Annotated[str, one_of(*SCOPES)] = 'global'
  """'global' compares the magnitudes of all layers, 'layer' removes the same share of each; of
  units always the latter."""


@dataclasses.dataclass(frozen=True)
class Options:
  """All options of a run.

  >>> options = Options(experiment='sweep', data=DataOptions(name='stdlib'))
  >>> options.num_seeds, options.data.name, options.sweep.modes
  (3, 'stdlib', ('standalone', 'shared'))
  """

  experiment: str = 'cotrain'
  """What to run: 'sweep' (Exp 1: rank the structures), 'cotrain' (Exp 2: train the best together),
  'stochastic' (Exp 3: random structures as a regulariser), 'experts' (Exp 4: tokens choose
  structures), 'dna' (tokens choose modules in any order), 'booster' (Exp 5: start a large model
  from small ones), 'compress' (what a network can do without, by variational dropout) or 'prune'
  (the smaller network within one, under a budget)."""
  seed: Seed = 0
  """First seed. A seed names the initial pool, the order of the data and the draws of
  structures."""
  num_seeds: Few = 3
  """Seeds run: seed, seed + 1, … Intervals in tables and pictures are over them."""
  data: DataOptions = dataclasses.field(default_factory=DataOptions)
  model: ModelOptions = dataclasses.field(default_factory=ModelOptions)
  task: TaskOptions = dataclasses.field(default_factory=TaskOptions)
  train: TrainOptions = dataclasses.field(default_factory=TrainOptions)
  init_from: Later[Placement[str]] = ''
  """Where the pool is from that all trainings start from: a run directory, a directory of its
  checkpoints, or what Flax (msgpack, safetensors) or Orbax has written; '' is that of each seed.
  Exp 5, which compares beginning untrained with growing from small networks, takes none. A run's
  identity has the numbers of the pool, not the path: another pool is another directory."""
  pretrained: Later[Placement[str]] = ''
  """A network of others, in place of `model` and `init_from`: a Hugging Face directory (Llama,
  SmolLM, Mistral, Qwen2, Qwen3, GPT-2, BERT, ViT) or a GGUF file. Text is tokenised by its
  tokenizer."""
  learning_rate: Rate = 1e-3
  """Peak (or only) learning rate."""
  optimizer: OptimizerOptions = dataclasses.field(default_factory=OptimizerOptions)
  schedule: ScheduleOptions = dataclasses.field(default_factory=ScheduleOptions)
  clip_norm: NotNegative = 0.0
  """Global norm that gradients are clipped to; 0 is no clipping."""
  sampler: SamplerOptions = dataclasses.field(default_factory=SamplerOptions)
  sweep: SweepOptions = dataclasses.field(default_factory=SweepOptions)
  search: SearchOptions = dataclasses.field(default_factory=SearchOptions)
  cotrain: CotrainOptions = dataclasses.field(default_factory=CotrainOptions)
  structures: Structures = ()
  """Structures to co-train: ('110111', '111111'). With none, and no directory below, a short shared
  sweep finds them."""
  structures_from: str = ''
  """An Exp 1 run directory whose top K are co-trained."""
  stochastic: StochasticOptions = dataclasses.field(default_factory=StochasticOptions)
  experts: ExpertsOptions = dataclasses.field(default_factory=ExpertsOptions)
  balance: BalanceOptions = dataclasses.field(default_factory=BalanceOptions)
  dna: DnaOptions = dataclasses.field(default_factory=DnaOptions)
  booster: BoosterOptions = dataclasses.field(default_factory=BoosterOptions)
  compress: CompressOptions = dataclasses.field(default_factory=CompressOptions)
  prune: PruneOptions = dataclasses.field(default_factory=PruneOptions)
  limit: Placement[NotNegative] = 12.0
  """Hours that a sweep, or the trainings of another experiment's stage, may take by the estimate
  that is logged before they start: what would take longer is refused. 0 is no limit."""
  shard: Placement[Shard] = ''
  """'I/N' does part I (from 0) of N of a sweep and leaves the rest to other processes; run again
  without it to merge."""
