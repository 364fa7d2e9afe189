"""Additive networks, in Flax Linen."""

from additive_jax.models.additive import Additive
from additive_jax.models.batch_norm import BatchNorm
from additive_jax.models.bert import BERT
from additive_jax.models.convnet import ConvNet
from additive_jax.models.convolution import conv_general_dilated
from additive_jax.models.costs import measure
from additive_jax.models.decoder import Decoder
from additive_jax.models.dense_stack import DenseStack
from additive_jax.models.dna import DNA, Modules
from additive_jax.models.dropout import Dropout
from additive_jax.models.gpt2 import GPT2
from additive_jax.models.mlp import MLP
from additive_jax.models.moe import Experts
from additive_jax.models.parallel_pairs import ParallelPairs
from additive_jax.models.plain import VGG, LeNet
from additive_jax.models.projected import Projected
from additive_jax.models.routing import Routing
from additive_jax.models.side import WithSide
from additive_jax.models.transformer import Transformer
from additive_jax.models.vit import ViT

__all__ = [
  'BERT',
  'DNA',
  'GPT2',
  'MLP',
  'VGG',
  'Additive',
  'BatchNorm',
  'ConvNet',
  'Decoder',
  'DenseStack',
  'Dropout',
  'Experts',
  'LeNet',
  'Modules',
  'ParallelPairs',
  'Projected',
  'Routing',
  'Transformer',
  'ViT',
  'WithSide',
  'conv_general_dilated',
  'measure',
]
