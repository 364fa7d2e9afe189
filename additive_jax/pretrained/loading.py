"""Pretrained networks from a Hugging Face directory or a GGUF file: no torch, no network."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree, Shaped

from additive_jax.data.tokenizer import tokenizer_of
from additive_jax.errors import UserError, one_line, user_path
from additive_jax.models.additive import Additive
from additive_jax.models.layer_sites import SITES, SUBLAYER
from additive_jax.parallel import layout
from additive_jax.pretrained.families import family_of
from additive_jax.pretrained.family import Config, Family, Place
from additive_jax.pretrained.reading import Tensors, read_json, tensors_of

CONFIG = 'config.json'
DTYPES = ('float32', 'bfloat16', 'float16')
EXPECTED = f'a Hugging Face directory with {CONFIG}, or a GGUF file'
SHOWN = 3  # tensors that a message names


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
  """A pretrained network.

  Attributes:
    model: an additive network of the library; all-on is the network that was loaded.
    variables: `{'params': pool}`.
    tokenizer: a `tokenizers.Tokenizer`, or None where the directory has none.
    config: what `config.json` says, or would say of a GGUF file.
    family: such as 'llama'.
    path: where it came from; None for one that was made.
    carried: tensors that no site reads, kept for an export.
    dtype: that its tensors have there, see `Source.dtype`; '' for one that was made.
  """

  model: Additive
  variables: PyTree
  tokenizer: Any
  config: Config
  family: str
  path: Path | None = None
  carried: Tensors = dataclasses.field(default_factory=dict)
  dtype: str = ''


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """What stands in files, of which tensors are read when they are used.

  Attributes:
    path: the directory or file.
    family: of the network.
    config, tensors, tokenizer: of the network.
  """

  path: Path
  family: Family
  config: Config
  tensors: Tensors
  tokenizer: Any

  @property
  def dtype(self) -> str:
    """The dtype that most numbers have: 'float32', 'bfloat16' or 'float16'. It is float32 of
    quantised ones, which other dtypes would round again."""
    sizes: collections.Counter[str] = collections.Counter()
    for tensor in self.tensors.values():
      sizes[str(np.dtype(tensor.dtype))] += int(np.prod(tensor.shape))
    ((most, _),) = sizes.most_common(1) or (('', 0),)
    return most if most in DTYPES else DTYPES[0]


def load(
  path: str | Path,
  *,
  dtype: str = 'float32',
  sites: str = SUBLAYER,
  gates: str | Sequence[str] | None = None,
  mesh: Mesh | None = None,
) -> Pretrained:
  """Returns a pretrained network whose residual sums are gates.

  Files are memory-mapped, and read one parameter at a time.

  >>> import pathlib, tempfile
  >>> sizes = {'width': 8, 'num_heads': 2, 'hidden': 16, 'num_tokens': 50, 'max_tokens': 64}
  >>> model = aj.models.Decoder(2, **sizes)
  >>> pool = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), int))
  >>> directory = pathlib.Path(tempfile.mkdtemp()) / 'tiny'
  >>> receipt = aj.pretrained.export(model, '1111', directory, pool)
  >>> tiny = aj.pretrained.load(directory)
  >>> tiny.family, tiny.model == model, tiny.model.space.names[1]
  ('llama', True, 'layer_00/mlp/residual')

  Args:
    path: a directory with `config.json` and one or several safetensors files, as
      `save_pretrained` of transformers writes it, or a GGUF file.
    dtype: of the parameters: 'float32', 'bfloat16' or 'float16'. The stream is float32.
    sites: 'sublayer' for gates of attention and feed-forward branches, 'layer' for one gate of
      each layer.
    gates: the kinds of gates; None is residual ones. BERT may have 'branch' ones, which keep the
      norm of the stream where they are off.
    mesh: places the pool as `parallel.layout` says, each device with its part alone; None is the
      default device.

  Raises:
    UserError: for something else, an unknown family or architecture, files that are damaged,
      tensors that are missing, unknown or of other shapes, or a tokenizer of another network.
  """
  return load_source(source_of(path), dtype=dtype, sites=sites, gates=gates, mesh=mesh)


def load_source(
  source: Source,
  *,
  dtype: str = 'float32',
  sites: str = SUBLAYER,
  gates: str | Sequence[str] | None = None,
  mesh: Mesh | None = None,
) -> Pretrained:
  """Returns the network that stands in some files; arguments and errors as of `load`."""
  if dtype not in DTYPES:
    raise UserError(f'dtype {dtype!r}: expected one of {", ".join(DTYPES)}')
  if sites not in SITES:
    raise UserError(f'sites {sites!r}: expected one of {", ".join(SITES)}')
  path, family = source.path, source.family
  options: dict[str, Any] = {'sites_by': sites} | ({} if gates is None else {'gates': gates})
  try:
    model = family.model(source.config, **options)
  except (TypeError, ValueError, ArithmeticError) as error:
    raise UserError(
      f'{path} with a config that makes no {family.name} ({one_line(error)}): expected the '
      'numbers of its config.json as transformers writes them'
    ) from error
  places, carried = fitting(model, source)
  check_vocabulary(source.tokenizer, source.config, path)
  pool = _placed(family, model, places, source.tensors, dtype, mesh)
  return Pretrained(
    model,
    {'params': pool},
    source.tokenizer,
    source.config,
    family.name,
    path,
    carried,
    source.dtype,
  )


def source_of(path: str | Path) -> Source:
  """Returns what the files of a network hold; raises `UserError` as `load`."""
  path = user_path(path, 'pretrained network')
  if not path.exists():
    raise UserError(f'pretrained network {str(path)!r} is not there: expected {EXPECTED}')
  if path.is_file():
    from additive_jax.pretrained.gguf import read_gguf

    config, tensors, tokenizer = read_gguf(path)
    return Source(path, family_of(config, path), config, tensors, tokenizer)
  if not (path / CONFIG).exists():
    raise UserError(f'{path} without {CONFIG}: expected {EXPECTED}')
  config = read_json(path / CONFIG)
  family = family_of(config, path)
  return Source(path, family, config, tensors_of(path), tokenizer_of(path))


def check_vocabulary(tokenizer: Any, config: Config, path: Path) -> None:
  """Raises `UserError` for a tokenizer that gives tokens which the network does not have."""
  size = config.get('vocab_size')
  if tokenizer is None or size is None:
    return
  vocabulary = tokenizer.get_vocab(with_added_tokens=True)
  word, last = max(vocabulary.items(), key=lambda pair: pair[1], default=('', -1))
  if last >= size:
    raise UserError(
      f'tokenizer of {path} with {len(vocabulary)} tokens, of which {word!r} is {last}: expected '
      f'that of the network, whose vocab_size is {size}'
    )


def fitting(model: Additive, source: Source) -> tuple[list[Place], Tensors]:
  """Returns the leaves of a network with the names of their tensors, and the tensors that are kept
  for an export.

  Raises:
    UserError: for tensors that are missing, unknown or of other shapes.
  """
  path, family, tensors = source.path, source.family, source.tensors
  places = list(family.places(model, family.prefix(source.config, list(tensors))))
  wanted = {
    name: place.leaf.tensor_shape(place.shape, family.sizes(model))
    for place in places
    for name in place.names
  }
  spare = [name for name in tensors if name not in wanted]
  carried = {name: tensors[name] for name in spare if family.matches(name, family.carried)}
  known = [*carried, *(name for name in spare if family.matches(name, family.constants))]
  unknown = [name for name in spare if name not in known]
  if family.tied and family.tied[0] in unknown:
    _check_tied(source)
    unknown.remove(family.tied[0])
  shapes = [
    f'{name} {list(tensors[name].shape)}, not {list(shape)}'
    for name, shape in wanted.items()
    if name in tensors and tuple(tensors[name].shape) != shape
  ]
  whole = [name for name in wanted if name in tensors and not _is_float(tensors[name])]
  problems = {
    'lacks': [name for name in wanted if name not in tensors],
    'has in other shapes': shapes,
    'has unknown': unknown,
    'has in other than floats': whole,
  }
  if any(problems.values()):
    told = '; '.join(f'{word} {_named(names)}' for word, names in problems.items() if names)
    raise UserError(f'{path} {told}: expected the tensors of {family.architecture(source.config)}')
  return places, carried


def _check_tied(source: Source) -> None:
  """Raises `UserError` where a readout that is said to be tied is not the embedding."""
  path, family = source.path, source.family
  assert family.tied is not None
  head, embedding = family.tied
  embedding = embedding.replace('~', family.prefix(source.config, list(source.tensors)))
  first, second = (source.tensors.get(name) for name in (head, embedding))
  if second is None or not np.array_equal(np.asarray(first), np.asarray(second)):
    raise UserError(
      f'{path} with a {head} that is not {embedding}: expected tie_word_embeddings of '
      f'{CONFIG} to be false'
    )


def _placed(
  family: Family,
  model: Additive,
  places: list[Place],
  tensors: Tensors,
  dtype: str,
  mesh: Mesh | None,
) -> PyTree:
  """Returns the pool on its devices."""
  specs: Mapping[str, Any] = {}
  if mesh is not None:
    leaves = layout.pool_specs(model, mesh, family.example(model))
    flat = jax.tree_util.tree_leaves_with_path(leaves)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
    specs = {name(path): leaf.stored for path, leaf in flat}
  pool = {}
  for place in places:
    given = [np.asarray(tensors[name]) for name in place.names]
    array = place.leaf.read(given, place.shape, family.sizes(model))
    if mesh is None:
      pool[place.path] = jnp.array(_as(array, dtype))
    else:
      sharding = NamedSharding(mesh, specs[place.path])
      part = lambda index, array=array: _as(array[index], dtype)
      pool[place.path] = jax.make_array_from_callback(place.shape, sharding, part)
  return unflatten_dict(pool, sep='/')


def _is_float(tensor: Any) -> bool:
  return jnp.issubdtype(tensor.dtype, jnp.floating)


def _as(array: Shaped[np.ndarray, '...'], dtype: str) -> Shaped[np.ndarray, '...']:
  """Returns numbers in a dtype by name, in order in memory."""
  return np.ascontiguousarray(array, np.dtype(jnp.dtype(dtype)))


def _named(names: Sequence[str]) -> str:
  """Returns the first of some names, and how many there are beside."""
  more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
  return f'{", ".join(names[:SHOWN])}{more}'
