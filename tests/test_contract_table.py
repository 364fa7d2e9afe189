"""The whole contract on every model of the library with every mix of its gate kinds: a new model
joins by a row."""

import itertools

import numpy as np
import pytest
import tiny

from additive_jax.models import (
  BERT,
  GPT2,
  MLP,
  VGG,
  ConvNet,
  Decoder,
  DenseStack,
  LeNet,
  Transformer,
  ViT,
)
from additive_jax.models.kinds import KINDS, LANE, RESIDUAL, SUB_ACTIVATION
from additive_jax.models.moe import Experts
from additive_jax.models.routing import Routing
from additive_jax.testing.check import check_model

RANDOM = np.random.default_rng(0)
LABELS = np.array([0, 1, 2, 0])
TABLE = RANDOM.normal(size=(4, 3)).astype(np.float32), LABELS
IMAGES = RANDOM.normal(size=(4, 4, 4, 1)).astype(np.float32), LABELS
DIGITS = RANDOM.normal(size=(4, 8, 8)).astype(np.float32), LABELS
TOKENS = RANDOM.integers(0, 5, (4, 3), np.uint8), RANDOM.integers(0, 5, (4, 3), np.uint8)


def vit(**options):
  return Transformer(1, 4, 2, 4, 3, patch_size=2, **options)


def language_model(**options):
  return Transformer(
    1, 4, 2, 4, 5, num_tokens=5, causal=True, positions='rope', unit='swiglu', **options
  )


# What makes the model of a gate mix, its kinds of gates, a batch, the task, and how many gates it
# has of each kind.
MODELS = {
  'mlp': (lambda **o: MLP(2, 4, (2, 4), 3, **o), KINDS, TABLE, 'classification', (2, 2, 2)),
  'vit': (vit, KINDS, IMAGES, 'classification', (2, 1, 2)),
  'language model': (language_model, KINDS, TOKENS, 'language', (2, 1, 2)),
  'convnet': (
    lambda **o: ConvNet((2, 4), 1, num_classes=3, **o),
    (RESIDUAL, SUB_ACTIVATION),
    IMAGES,
    'classification',
    (2, 2),
  ),
  'dense stack': (
    lambda **o: DenseStack((4, 2), num_classes=3, **o),
    (SUB_ACTIVATION,),
    TABLE,
    'classification',
    (1,),
  ),
  'lenet': (
    lambda **o: LeNet(num_classes=3, **o),
    (SUB_ACTIVATION,),
    DIGITS,
    'classification',
    (2,),
  ),
  'vgg': (
    lambda **o: VGG((2, 3), num_classes=3, **o),
    (SUB_ACTIVATION,),
    IMAGES,
    'classification',
    (2,),
  ),
}
# The rest repeats on some kinds of gates what all of them show, or on another model.
DEFAULT = [(name, len(kinds)) for name, (_, kinds, *_) in MODELS.items()]
# Feed-forward sites whose tokens choose their structures: residual gates around them.
ROUTED = {
  'vit, k best of all': Routing('factorised', 2),
  'language model, top 2 of a list': Routing('softmax', 2, True, ('11', '01', '00')),
  'language model, all': Routing('marginal'),
  'vit, at random': Routing('random', 1),
  'vit, gates of tokens': Routing('marginal', keep=0.5),
  'language model, standard experts': Experts(3, 2),
}
ROWS = [
  pytest.param(
    make,
    mix,
    batch,
    task,
    sum(counts[kinds.index(kind)] for kind in mix),
    id=f'{name}-{"+".join(mix)}',
    marks=pytest.mark.thorough
    if (name, size) not in DEFAULT and (name, mix) != ('language model', (LANE,))
    else ()
    if mix == KINDS and name == 'language model'
    else pytest.mark.slow,
  )
  for name, (make, kinds, batch, task, counts) in MODELS.items()
  for size in range(1, len(kinds) + 1)
  for mix in itertools.combinations(kinds, size)
  if (name, size) not in [('vit', 1), ('vit', 2), ('mlp', 2)]  # a language model has these sites
]


@pytest.mark.parametrize(('make', 'mix', 'batch', 'task', 'num_gates'), ROWS)
def test_the_contract(make, mix, batch, task, num_gates):
  said = check_model(make(gates=mix, num_chunks=2), batch, task=task, max_structures=3)
  assert f'\n{num_gates} gates; {min(3, 1 << num_gates)} structures' in said


PADDED = {'tokens': TOKENS[0], 'mask': np.array([[1, 1, 1], [0, 1, 1], [1, 1, 0], [1, 1, 1]])}
SMALL = {'width': 4, 'num_heads': 2, 'hidden': 4, 'num_tokens': 5}
ENCODER = {**SMALL, 'max_tokens': 3, 'head': 'masked'}
# Pretrained families: a network, its batch, and the task.
FAMILIES = {
  'decoder': (
    lambda: Decoder(1, 8, 4, 4, 5, num_kv_heads=2, gates=KINDS, num_chunks=2),
    (PADDED, TOKENS[1]),
    'language',
  ),
  'decoder, qwen': (
    lambda: Decoder(1, head_size=6, qkv_bias=True, qk_norm=True, tied=False, window=2, **SMALL),
    TOKENS,
    'language',
  ),
  'decoder, whole layers': (lambda: Decoder(2, sites_by='layer', **SMALL), TOKENS, 'language'),
  'gpt2': (
    lambda: GPT2(1, max_tokens=3, gates=KINDS, num_chunks=2, **SMALL),
    (PADDED, TOKENS[1]),
    'language',
  ),
  'bert, skipped whole': (lambda: BERT(1, **ENCODER), (PADDED, TOKENS[1]), 'language'),
  'bert, norm kept': (
    lambda: BERT(1, gates='branch', **ENCODER),
    (PADDED, TOKENS[1]),
    'language',
  ),
  'vit with a class token': (
    lambda: ViT(
      1, 4, 2, 4, 3, image_size=4, patch_size=2, num_channels=1, gates=KINDS, num_chunks=2
    ),
    IMAGES,
    'classification',
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', tiny.thorough_but(['decoder', 'bert, norm kept'], FAMILIES))
def test_the_contract_of_pretrained_families(name):
  make, batch, task = FAMILIES[name]
  assert 'keeps the contract' in check_model(make(), batch, task=task, max_structures=3)


@pytest.mark.slow
@pytest.mark.parametrize('name', tiny.thorough_but(list(ROUTED)[:2] + list(ROUTED)[4:], ROUTED))
def test_the_contract_with_routers(name):
  make, batch, task = (
    (vit, IMAGES, 'classification') if 'vit' in name else (language_model, TOKENS, 'language')
  )
  model = make(num_chunks=3, routing=ROUTED[name])
  with tiny.two_sizes():
    said = check_model(model, batch, task=task, max_structures=3)
  assert '\n2 gates; 3 structures' in said
