"""The options of every experiment: data, model, training, and which structures are drawn.

A section is a frozen dataclass. Each of its fields is an option: the annotation says what is
allowed, the default stands beside it, and the text below it says what it means. They are shown, all
together, in `configs/default.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from additive_jax.data.table import TASKS
from additive_jax.experiments.options.rules import (
  CHANNELS,
  LABEL_OR_NONE,
  SHARE,
  Blocks,
  Bytes,
  Count,
  Few,
  FewOrNone,
  HeldOut,
  Later,
  Many,
  NotNegative,
  Placement,
  Positive,
  Rule,
  Share,
  ShareBelowOne,
  Sizes,
  Structures,
  Whole,
  between,
  each,
  one_of,
  some_of,
)
from additive_jax.models.kinds import KINDS
from additive_jax.models.transformer import POSITIONS, UNITS
from additive_jax.parallel.collectives import COLLECTIVES
from additive_jax.parallel.pipeline_schedule import SCHEDULES
from additive_jax.run.objectives import LOSSES
from additive_jax.search import METHODS
from additive_jax.train.augment import NAMES as AUGMENT
from additive_jax.train.recipe import AVERAGES, DTYPES
from additive_jax.train.samplers import RAMP_SHAPES, SAMPLERS

POINTS, MOST_STEPS = 40, 50  # of a curve, and from one of them to the next


@dataclasses.dataclass(frozen=True)
class DataOptions:
  """What is learnt.

  >>> DataOptions(name='text:book.txt').sequence_length
  128
  """

  name: str = 'digits'
  """digits | stdlib | idx:DIR | text:PATH | tabular:NAME | tfds:NAME | file:PATH (a table: CSV,
  Parquet or NPZ) | images:DIR (DIR/class/*.png, or DIR/train/class/*.png and DIR/test)"""
  sequence_length: Count = 128
  """Tokens of one example of text."""
  tokenizer: Later[str] = ''
  """Of text, what makes tokens of it: a tokenizer.json, a directory with one, such as that of a
  pretrained network, or a GGUF file; '' is bytes. Documents, which are files, or lines of .jsonl
  files with a 'text', are packed into examples and do not see each other."""
  data_dir: str = ''
  """Where TensorFlow Datasets keeps its sets; '' is its own default."""
  download: bool = False
  """Whether a TensorFlow Datasets set that is not there may be downloaded."""
  memory_limit: Bytes = 2 * 1024**3
  """Bytes up to which a set is kept on the device, 2 GiB; a larger one is read batch by batch."""
  valid: HeldOut = -1.0
  """Share of the training part that is held out to choose by: structures, epochs, thresholds. -1 is
  the source's own split, or else the last examples of the training part, as many as are tested but
  a fifth at most. 0 is none: then what is chosen is chosen on the test split."""
  train_examples: Whole = 0
  """Examples used of the training split, spaced evenly over it; 0 is all, and so is more than there
  are of a text."""
  test_examples: Whole = 0
  """Examples used of the test split, likewise."""
  valid_examples: Later[Whole] = 0
  """Examples used of the split to choose by, likewise."""
  target: Later[str] = ''
  """Of a table, the column that is learnt; of a regression also several, with commas."""
  columns: Later[str] = ''
  """Of a table, the columns that it is learnt from, with commas; '' is all others."""
  missing: Later[Annotated[str, one_of('refuse', 'drop', 'fill')]] = 'refuse'
  """Of a table, what becomes of values that are missing: they are refused, their rows are left out
  ('drop'), or those that are learnt from are filled ('fill'): numbers by the mean of the training
  rows, with an input more that says where, texts by no category."""
  weight: Later[str] = ''
  """Of a table, the column of the rows' weights; '' is none."""
  split: Later[str] = ''
  """Of a table, the column that says of each row 'train', 'valid' or 'test'; '' is none: a fifth of
  the rows, drawn with a fixed seed, tests."""
  task: Later[Annotated[str, one_of('', *TASKS)]] = ''
  """Of a table, what its target is; '' is a classification where the target is text or has at most
  20 different whole numbers, and else a regression."""
  augment: Later[Annotated[tuple[str, ...], each('some of crop, flip, mixup', AUGMENT.count)]] = ()
  """What changes the examples of each training step at random, in turn: images are moved ('crop')
  and mirrored ('flip'), and examples mixed with others of their batch ('mixup')."""
  crop_pixels: Later[FewOrNone] = 0
  """Pixels that crop moves an image by, at most; 0 is an eighth of its height."""
  flip_rate: Later[Share] = 0.5
  """Probability that flip mirrors an image."""
  mixup_alpha: Later[Positive] = 0.2
  """Of mixup, α of the Beta(α, α) that shares are drawn from."""
  image_size: Later[FewOrNone] = 0
  """Of folders of images, height and width that all are brought to; 0 is their own."""
  channels: Later[Annotated[int, CHANNELS]] = 0
  """Of folders of images, 1, 3 or 4; 0 is 1 where the first image is grey, and else 3."""


_NOT_NEGATIVE = between(0, 10**6).allows


@dataclasses.dataclass(frozen=True)
class TaskOptions:
  """What is minimised, and what networks are judged by; the data says which task it is.

  >>> TaskOptions(rank_by='accuracy').loss
  ''
  """

  loss: Later[Annotated[str, one_of('', *LOSSES)]] = ''
  """In place of the task's own, which '' is: in a regression 'squared', 'absolute' or 'huber'."""
  metrics: Later[tuple[str, ...]] = ()
  """In place of the task's own, the first one the headline: of a classification 'accuracy',
  'f1_macro', 'top5' or of another number; of language also 'perplexity'; of a regression 'r2',
  'mae', 'rmse'; of binary 'accuracy', 'f1'; of multi_label 'f1_micro', 'f1_macro', 'exact_match',
  'accuracy'."""
  rank_by: Later[str] = 'loss'
  """'loss', or the metric by which structures are chosen and ranked."""
  label_smoothing: Later[ShareBelowOne] = 0.0
  """The share of each label that is spread over all classes, in training and in the loss judged."""
  class_weights: Later[Annotated[tuple[float, ...], each('numbers from 0', _NOT_NEGATIVE)]] = ()
  """What the loss of an example or token counts by its class, a number for each; () is 1."""
  ignore_label: Later[Annotated[str, LABEL_OR_NONE]] = ''
  """The label that does not count, such as that of padding: '-100'; '' is none."""


NETWORKS = ('mlp', 'dense_stack', 'transformer', 'convnet', 'lenet', 'vgg')
_NETWORK = Rule(
  f'one of {", ".join(NETWORKS)}, or module:Class',
  lambda name: name in NETWORKS or ':' in name,
  NETWORKS,
)


@dataclasses.dataclass(frozen=True)
class ModelOptions:
  """The network.

  >>> ModelOptions(num_blocks=2).hidden
  (128,)
  """

  name: Annotated[str, _NETWORK] = 'mlp'
  """A transformer classifies image patches, or is a causal model of text; 'module:Class'
  is a network of your own, which is made with `kwargs` and num_classes alone; of one that
  takes none, such as additive_jax.models:Decoder, num_tokens is the size of the vocabulary."""
  gates: Annotated[tuple[str, ...], some_of(*KINDS)] = ('residual',)
  """Kinds of gates that are chosen; those of other kinds stay on."""
  num_chunks: Few = 4
  """Chunks that the sub-activation gates of a branch join: one gate less than chunks."""
  num_lanes: Few = 2
  """Lanes that lane gates join; hidden units and attention heads are split over them."""
  num_blocks: Blocks = 6
  """Residual blocks of mlp; layers of transformer, an attention and a feed-forward site each."""
  width: Count = 64
  """Width of the stream, of mlp and transformer."""
  hidden: Sizes = (128,)
  """Hidden units of a feed-forward branch: one number for all, or one per block. Of dense_stack
  those of each hidden layer: (300, 100)."""
  num_heads: Few = 4
  """Attention heads, of transformer."""
  patch_size: Few = 2
  """Side of the square patches that a transformer cuts images into."""
  positions: Annotated[str, one_of(*POSITIONS)] = 'learned'
  """How a transformer knows the order of its tokens."""
  unit: Annotated[str, one_of(*UNITS)] = 'gelu'
  """Feed-forward unit of a transformer."""
  dropout: Later[ShareBelowOne] = 0.0
  """Probability that training drops a number after each dense layer but those of queries, keys,
  values and logits, and after the embedding, of mlp and transformer."""
  channels: Sizes = (16, 32)
  """Channels of each stage, of convnet and vgg."""
  blocks_per_stage: Blocks = 2
  """Residual blocks of each stage, of convnet."""
  kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
  """What a network of your own is made with."""


@dataclasses.dataclass(frozen=True)
class TrainOptions:
  """Training of pools and of structures alone.

  >>> TrainOptions(epochs=2.0).batch_size
  128
  """

  epochs: Positive = 10.0
  """Passes over the training set, at batch_size examples a step; a pool passes K times as many."""
  batch_size: Count = 128
  """Examples of each structure and step."""
  structures_per_step: Few = 4
  """K, structures that a pool trains in each step. Co-training takes its own number of them."""
  shared_batch: bool = False
  """Whether the K structures of a step share one batch instead of having one each."""
  average: Annotated[str, one_of(*AVERAGES)] = 'mean'
  """How the gradients of a step become one: 'coverage' divides each parameter's by the number of
  structures that used it."""
  collective: Annotated[str, one_of(*COLLECTIVES)] = 'psum'
  """How devices average."""
  expert_devices: Placement[Count] = 1
  """Devices that experts of their own weights, or the modules of a DNA, are spread over: each holds
  and runs as many of them. A number that divides the devices and the experts; 1: all have all."""
  fsdp_devices: Placement[Count] = 1
  """Devices that share out every parameter, its gradient and what the optimizer keeps of it, and
  the examples of a batch; a site gathers its parameters to run. A number that divides the devices
  and the batch; 1: each device has all."""
  tensor_devices: Placement[Count] = 1
  """Devices that share out the heads and hidden units of every branch, and the work on them. A
  number that divides the devices and both; what has neither is kept in parts and gathered."""
  zero: Placement[bool] = False
  """Whether what the optimizer keeps is split over all devices of a pool's mesh, instead of each of
  them having a copy (ZeRO, stage 1); the numbers stay the same."""
  offload: Placement[bool] = False
  """Whether what the optimizer keeps lies in host memory, from where each step fetches it: a copy
  for each device, or with `zero` a part for each."""
  pipe_devices: Placement[Count] = 1
  """Devices that the sites of one network are spread over in stages, as a pipeline: a number that
  divides the devices and, times pipe_repeats, the sites, which must be alike from stage to stage;
  1: all devices have all."""
  microbatches: Placement[Few] = 4
  """Parts of a slot's batch that go through the stages one after the other."""
  pipe_schedule: Placement[Annotated[str, one_of(*SCHEDULES)]] = 'gpipe'
  """'gpipe': one stage on each device; 'circular': pipe_repeats of them, and microbatches a
  multiple of pipe_devices, for a shorter bubble at more traffic."""
  pipe_repeats: Placement[Few] = 1
  """Stages on each device, of 'circular'."""
  distill: Share = 0.0
  """Weight of in-place distillation from all-on; 0 is none."""
  slot_clip_norm: Later[NotNegative] = 0.0
  """Global norm that the gradient of each structure of a step is clipped to, before they are
  averaged: one bad batch then moves the pool by no more than any other; 0 is no clipping."""
  dtype: Later[Annotated[str, one_of(*DTYPES)]] = 'float32'
  """What branches, embed and readout compute in: 'float32' or 'bfloat16'. Parameters, optimizer,
  the stream, losses, softmax, routers and the statistics of norms are float32 in any case, and so
  is all judging."""
  accumulate: Later[Few] = 1
  """Pieces of each batch that go through the network one after the other, for the memory of one;
  their gradients are averaged to that of the batch."""
  ema: Later[ShareBelowOne] = 0.0
  """Decay of a mean of the pool over the steps, such as 0.999, which is judged beside the pool; at
  most (1 + t) / (10 + t) in step t, so that early steps are soon forgotten. 0 keeps none."""
  learning_rates: Later[dict[str, Any]] = dataclasses.field(default_factory=dict)
  """What multiplies the learning rate, by a regular expression of the paths of leaves:
  {'embed': 0.1, 'block_0.*/kernel': 2.0}. Where several fit a leaf, it is their product."""
  frozen: Later[tuple[str, ...]] = ()
  """Parts that do not learn: regular expressions of their paths, ('embed', 'block_00')."""
  low_rank: Later[FewOrNone] = 0
  """Rank of what matrices change by, for the memory of that; 0 is any, see `train.low_rank`."""
  log_every: FewOrNone = 0
  """Steps from point to point of curves, the most in a device call; 0: 40 points, 50 at most."""
  checkpoint_every: Many = 500
  """Steps between two checkpoints."""

  @property
  def chunk_steps(self) -> int:
    """The most steps that one device call takes."""
    return self.log_every or MOST_STEPS

  def steps_of_points(self, num_steps: int) -> int:
    """Returns how many steps lie between two points of the curve of a training.
    >>> [TrainOptions().steps_of_points(num_steps) for num_steps in (30, 400, 10**6)]
    [1, 10, 50]
    """
    return self.log_every or min(max(num_steps // POINTS, 1), MOST_STEPS)


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
  """The optimizer, of Optax."""

  name: str = 'adamw'
  """Any optimizer of Optax or optax.contrib that takes a learning rate."""
  kwargs: dict[str, Any] = dataclasses.field(default_factory=lambda: {'weight_decay': 1e-4})
  """Its other arguments."""


@dataclasses.dataclass(frozen=True)
class ScheduleOptions:
  """How the learning rate changes over the run."""

  name: str = 'cosine_decay_schedule'
  """'constant', or a schedule of Optax."""
  kwargs: dict[str, Any] = dataclasses.field(default_factory=lambda: {'decay_steps': 1.0})
  """Its arguments beside the rate; those named *_steps may be given as shares of the run."""


@dataclasses.dataclass(frozen=True)
class SamplerOptions:
  """Which structures a shared pool is trained on."""

  name: Annotated[str, one_of(*SAMPLERS)] = 'uniform'
  """The distribution that structures are drawn from; with 'fixed' and 'listed' they are given.
  'fair' draws complementary pairs, 'progressive' first all-on and then ever smaller structures."""
  structures: Structures = ()
  """For fixed and listed: ('1011', '0011')."""
  keep_rate: Share = 0.5
  """For bernoulli: keep rate of the last site."""
  keep_ramp: Annotated[str, one_of('uniform', 'linear', 'exponential')] = 'uniform'
  """For bernoulli: how keep rates fall over depth, all gates of a site alike."""
  gate_keep_rates: Annotated[tuple[float, ...], each('shares in [0, 1]', SHARE.allows)] = ()
  """For bernoulli: one keep rate per gate, in place of keep_rate and keep_ramp."""
  ramp: Share = 0.0
  """Share of the run: for bernoulli, over which the rates fall from 1; for progressive, over which
  the smallest structure that is drawn falls from all-on to all-off."""
  ramp_shape: Annotated[str, one_of(*RAMP_SHAPES)] = 'linear'
  """For bernoulli: how they fall over the run; 'cosine' slowly at both ends, 'step' at its end."""


@dataclasses.dataclass(frozen=True)
class SearchOptions:
  """A searched set, for spaces too large to enumerate."""

  method: Annotated[str, one_of('', *METHODS)] = ''
  """How structures are searched; '' is not at all, but all 2^n: except in Exp 1, which of more than
  4,096 networks finds those to train alone by 'evolution' in the shared pool."""
  budget: Many = 2048
  """Structures evaluated in all."""
  population: Count = 128
  """Structures evaluated in each generation."""
