"""ViT: configs, and names of tensors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from additive_jax.models.vit import ViT
from additive_jax.pretrained.bert import classes_of, qkv_leaves
from additive_jax.pretrained.family import Config, Family, expect, needed
from additive_jax.pretrained.leaves import leaf

ENDS = (
  leaf('class_token', '~embeddings.cls_token', pattern='a b d -> (a b d)'),
  leaf('position', '~embeddings.position_embeddings', pattern='a t d -> (a t) d'),
  leaf(
    'embed/kernel',
    '~embeddings.patch_embeddings.projection.weight',
    pattern='d k y x -> (y x k) d',
  ),
  leaf('embed/bias', '~embeddings.patch_embeddings.projection.bias'),
  leaf('readout/norm/scale', '~layernorm.weight'),
  leaf('readout/norm/bias', '~layernorm.bias'),
  leaf('readout/out/kernel', 'classifier.weight', pattern='c d -> d c'),
  leaf('readout/out/bias', 'classifier.bias'),
)
LAYERS = (
  leaf('attention/norm/scale', 'layernorm_before.weight'),
  leaf('attention/norm/bias', 'layernorm_before.bias'),
  *qkv_leaves('attention.attention'),
  leaf('attention/out/kernel', 'attention.output.dense.weight', pattern='d (n u) -> n u d'),
  leaf('attention/out/bias', 'attention.output.dense.bias'),
  leaf('mlp/norm/scale', 'layernorm_after.weight'),
  leaf('mlp/norm/bias', 'layernorm_after.bias'),
  leaf('mlp/in/kernel', 'intermediate.dense.weight', pattern='h d -> d h'),
  leaf('mlp/in/bias', 'intermediate.dense.bias'),
  leaf('mlp/out/kernel', 'output.dense.weight', pattern='d h -> h d'),
  leaf('mlp/out/bias', 'output.dense.bias'),
)


def network(config: Config, **options: Any) -> ViT:
  """Returns the network of a config."""
  expect(config, 'qkv_bias', True)
  width, layers, heads, hidden = needed(
    config, 'hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size'
  )
  return ViT(
    layers,
    width,
    heads,
    hidden,
    classes_of(config),
    image_size=config.get('image_size', 224),
    patch_size=config.get('patch_size', 16),
    num_channels=config.get('num_channels', 3),
    epsilon=float(config.get('layer_norm_eps', 1e-12)),
    activation=config.get('hidden_act', 'gelu'),
    **options,
  )


def config_of(model: ViT) -> Config:
  """Returns a config of a network."""
  return {
    'model_type': 'vit',
    'architectures': ['ViTForImageClassification'],
    'hidden_size': model.width,
    'num_hidden_layers': model.num_layers,
    'num_attention_heads': model.num_heads,
    'intermediate_size': model.hidden,
    'hidden_act': model.activation,
    'image_size': model.image_size,
    'patch_size': model.patch_size,
    'num_channels': model.num_channels,
    'layer_norm_eps': model.epsilon,
    'qkv_bias': True,
    'id2label': {str(i): f'LABEL_{i}' for i in range(model.num_classes)},
    'label2id': {f'LABEL_{i}': i for i in range(model.num_classes)},
  }


def images_example(model: ViT) -> jax.ShapeDtypeStruct:
  """Returns the shape of an image."""
  sides = (model.image_size, model.image_size, model.num_channels)
  return jax.ShapeDtypeStruct((1, *sides), jnp.float32)


FAMILY = Family(
  name='vit',
  architectures={'ViTForImageClassification': 'vit.'},
  network=ViT,
  model=network,
  config=config_of,
  ends=ENDS,
  layers=LAYERS,
  layer_name='~encoder.layer.{}.',
  num_layers='num_hidden_layers',
  outputs={
    'attention': ('attention/out/kernel', 'attention/out/bias'),
    'mlp': ('mlp/out/kernel', 'mlp/out/bias'),
  },
  example=images_example,
  sizes=lambda model: {
    'n': model.num_heads,
    'a': 1,
    'b': 1,
    'k': model.num_channels,
    'y': model.patch_size,
    'x': model.patch_size,
  },
)
