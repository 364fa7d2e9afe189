"""BERT: configs, and names of tensors."""

from __future__ import annotations

from typing import Any

from additive_jax.models.bert import BERT, CLASSES, HIDDEN, MASKED
from additive_jax.pretrained.family import Config, Family, expect, needed, tokens_example
from additive_jax.pretrained.leaves import leaf

HEADS = {
  'BertModel': HIDDEN,
  'BertForMaskedLM': MASKED,
  'BertForSequenceClassification': CLASSES,
}
ENDS = (
  leaf('embed/embedding', '~embeddings.word_embeddings.weight'),
  leaf('position/embedding', '~embeddings.position_embeddings.weight'),
  leaf('types/embedding', '~embeddings.token_type_embeddings.weight'),
  leaf('norm/scale', '~embeddings.LayerNorm.weight'),
  leaf('norm/bias', '~embeddings.LayerNorm.bias'),
  leaf('readout/transform/kernel', 'cls.predictions.transform.dense.weight', pattern='e d -> d e'),
  leaf('readout/transform/bias', 'cls.predictions.transform.dense.bias'),
  leaf('readout/norm/scale', 'cls.predictions.transform.LayerNorm.weight'),
  leaf('readout/norm/bias', 'cls.predictions.transform.LayerNorm.bias'),
  leaf('readout/bias', 'cls.predictions.bias'),
  leaf('readout/pooler/kernel', '~pooler.dense.weight', pattern='e d -> d e'),
  leaf('readout/pooler/bias', '~pooler.dense.bias'),
  leaf('readout/out/kernel', 'classifier.weight', pattern='c d -> d c'),
  leaf('readout/out/bias', 'classifier.bias'),
)


def qkv_leaves(name: str) -> tuple[Any, ...]:
  """Returns the leaves of queries, keys and values, whose tensors stand apart.

  Args:
    name: of the tensors' module: 'attention.self'.
  """
  parts = [f'{name}.{part}' for part in ('query', 'key', 'value')]
  kernels, biases = ([f'{part}.{end}' for part in parts] for end in ('weight', 'bias'))
  return (
    leaf('attention/qkv/kernel', *kernels, pattern='i (n u) d -> d i n u'),
    leaf('attention/qkv/bias', *biases, pattern='i (n u) -> i n u'),
  )


LAYERS = (
  *qkv_leaves('attention.self'),
  leaf('attention/out/kernel', 'attention.output.dense.weight', pattern='d (n u) -> n u d'),
  leaf('attention/out/bias', 'attention.output.dense.bias'),
  leaf('attention/norm/scale', 'attention.output.LayerNorm.weight'),
  leaf('attention/norm/bias', 'attention.output.LayerNorm.bias'),
  leaf('mlp/in/kernel', 'intermediate.dense.weight', pattern='h d -> d h'),
  leaf('mlp/in/bias', 'intermediate.dense.bias'),
  leaf('mlp/out/kernel', 'output.dense.weight', pattern='d h -> h d'),
  leaf('mlp/out/bias', 'output.dense.bias'),
  leaf('mlp/norm/scale', 'output.LayerNorm.weight'),
  leaf('mlp/norm/bias', 'output.LayerNorm.bias'),
)


def network(config: Config, **options: Any) -> BERT:
  """Returns the network of a config."""
  expect(config, 'position_embedding_type', 'absolute', None)
  expect(config, 'is_decoder', False)
  expect(config, 'tie_word_embeddings', True)
  tokens, width, layers, heads, hidden = needed(
    config,
    'vocab_size',
    'hidden_size',
    'num_hidden_layers',
    'num_attention_heads',
    'intermediate_size',
  )
  return BERT(
    layers,
    width,
    heads,
    hidden,
    tokens,
    max_tokens=config.get('max_position_embeddings', 512),
    num_types=config.get('type_vocab_size', 2),
    epsilon=float(config.get('layer_norm_eps', 1e-12)),
    activation=config.get('hidden_act', 'gelu'),
    head=HEADS[config['architectures'][0]] if config.get('architectures') else HIDDEN,
    num_classes=classes_of(config),
    **options,
  )


def classes_of(config: Config) -> int:
  """Returns how many classes a config has: two where it says nothing."""
  labels = config.get('id2label')
  return len(labels) if labels else int(config.get('num_labels', 2))


def config_of(model: BERT) -> Config:
  """Returns a config of a network."""
  (architecture,) = (name for name, head in HEADS.items() if head == model.head)
  return {
    'model_type': 'bert',
    'architectures': [architecture],
    'vocab_size': model.num_tokens,
    'hidden_size': model.width,
    'num_hidden_layers': model.num_layers,
    'num_attention_heads': model.num_heads,
    'intermediate_size': model.hidden,
    'hidden_act': model.activation,
    'max_position_embeddings': model.max_tokens,
    'type_vocab_size': model.num_types,
    'layer_norm_eps': model.epsilon,
    'id2label': {str(i): f'LABEL_{i}' for i in range(model.num_classes)},
    'label2id': {f'LABEL_{i}': i for i in range(model.num_classes)},
  }


FAMILY = Family(
  name='bert',
  architectures={name: '' if name == 'BertModel' else 'bert.' for name in HEADS},
  network=BERT,
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
  example=tokens_example,
  sizes=lambda model: {'n': model.num_heads},
  constants=(r'embeddings\.position_ids', r'cls\.predictions\.decoder\.bias'),
  carried=(r'pooler\.dense\.(weight|bias)',),
  tied=('cls.predictions.decoder.weight', '~embeddings.word_embeddings.weight'),
)
