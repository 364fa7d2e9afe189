"""A structure of a pretrained network as a directory that transformers opens."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree, Shaped
from safetensors import numpy as safetensors

from additive_jax.data.tokenizer import FILES, JSON
from additive_jax.errors import UserError, user_errors, user_path
from additive_jax.files import temporaries
from additive_jax.files.rundir import WRITABLE
from additive_jax.gates.structure import Structure, StructureLike
from additive_jax.models.additive import Additive
from additive_jax.models.contract import check_pool
from additive_jax.pretrained.dropped import Kept, kept, smaller_config
from additive_jax.pretrained.families import FAMILIES, family_of_model
from additive_jax.pretrained.family import Family
from additive_jax.pretrained.loading import CONFIG, DTYPES, Pretrained, load
from additive_jax.pretrained.reading import INDEX, ONE
from additive_jax.pretrained.reference import logits_of_reference
from additive_jax.run.ways import static

RECEIPT = 'additive_jax.json'
SHARD_BYTES = 4 * 2**30
OTHERS = (*FILES, 'generation_config.json', 'preprocessor_config.json', 'LICENSE')
TOKENS = 16  # of each of two examples that are compared


@dataclasses.dataclass(frozen=True)
class Receipt:
  """What was exported, and how far it is from the structure.

  Attributes:
    directory: what was written.
    structure: which gates were on.
    layers: the numbers, in the network it came from, of the layers that stay.
    zeroed: branches of layers that stay which give zero, by name: exact, but no faster.
    params, params_before: numbers of parameters, without those of `zeroed` branches.
    written: numbers in the files, with these.
    bytes: of the tensors that were written.
    dtype: that they have; `difference` and `reference` have its rounding in them.
    difference: the largest |Δlogit| between the structure and what is read from the directory.
    reference: the same of the reference implementation, and which that is; None where it is not
      installed.
    scale: the largest |logit|.
    agreement: the share of outputs whose largest logit is the same, in the worse comparison.
  """

  directory: str
  structure: str
  layers: tuple[int, ...]
  zeroed: tuple[str, ...]
  params: int
  params_before: int
  written: int
  bytes: int
  dtype: str
  difference: float
  reference: float | None
  reference_name: str | None
  scale: float
  agreement: float

  def __str__(self) -> str:
    more = ''
    if self.zeroed:
      more = f', {self.written:,} in the files, for {len(self.zeroed)} branches are zeros there'
    told = 'not installed' if self.reference is None else f'{self.reference:.2g}'
    return (
      f'{self.directory}: {len(self.layers)} layers, {self.params:,} of {self.params_before:,} '
      f'parameters{more}, in {self.dtype}; max |Δlogit| {self.difference:.2g}, '
      f'{self.reference_name or "reference"} {told}, at a scale of {self.scale:.3g}; the same '
      f'largest logit in {self.agreement:.1%}'
    )


def export(
  pretrained: Pretrained | Additive,
  structure: StructureLike,
  directory: str | Path,
  variables: PyTree | None = None,
  *,
  overwrite: bool = False,
  reference: bool | None = None,
  dtype: str | None = None,
) -> Receipt:
  """Writes a structure as a Hugging Face directory, all of it or nothing: config, safetensors,
  tokenizer, and a receipt `additive_jax.json`.

  Layers whose branches are all off are left out, and the others numbered anew. Of a branch that is
  off in a layer that stays, the output matrix becomes zero. What was written is read again, and its
  logits compared with the structure's; where torch and transformers are installed, theirs too.

  Args:
    pretrained: what `load` gives, or a `Decoder`, `GPT2`, `BERT` or `ViT` of one's own.
    structure: which gates are on, in any form.
    directory: is made.
    variables: `{'params': pool}`, such as a healed one; None is the pool that was loaded.
    overwrite: whether a directory of that name is replaced, if it holds a network.
    reference: whether the reference implementation is asked; None is where it is installed.
    dtype: of what is written: 'float32', 'bfloat16' or 'float16'; None is what most numbers have
      in the files that the network was loaded from (float32 of quantised ones), or the pool's where
      that is smaller, and of a network of one's own the pool's.

  Raises:
    UserError: for a directory that exists, a structure that the reference implementation cannot
      run, a pool of another network, or numbers that the dtype does not have.
  """
  source = _pretrained(pretrained, variables)
  family = FAMILIES[source.family]
  wanted = source.model.space.parse(structure)
  stays = kept(source.model, wanted)
  check_pool(source.model, source.variables, family.example(source.model))
  dtype = _dtype(source, dtype)
  directory = user_path(directory, 'directory').absolute()
  _check_place(directory, overwrite)
  if source.path and directory.resolve() == source.path.resolve():
    raise UserError(f'{directory} is what the network was loaded from: expected another directory')
  temporaries.remove_stale(directory.parent.glob(f'.{directory.name}.*.tmp'))
  temporary = temporaries.beside(directory)
  try:
    with user_errors('write', directory, WRITABLE):
      temporary.mkdir()
      _write(source, family, stays, dtype, temporary)
      receipt = _receipt(source, family, wanted, stays, dtype, temporary, directory, reference)
      text = json.dumps(dataclasses.asdict(receipt), indent=2)
      (temporary / RECEIPT).write_text(text + '\n')
      _replace(temporary, directory)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return receipt


def _pretrained(given: Any, variables: PyTree | None) -> Pretrained:
  """Returns what is exported, with the pool that is."""
  if isinstance(given, Pretrained):
    return given if variables is None else dataclasses.replace(given, variables=variables)
  family, config = family_of_model(given)
  if variables is None:
    raise UserError(f'export of a {type(given).__name__} without variables: expected its pool')
  return Pretrained(given, variables, None, config, family.name)


def _dtype(source: Pretrained, given: str | None) -> str:
  """Returns the dtype of what is written."""
  if given is not None and given not in DTYPES:
    raise UserError(f'dtype {given!r}: expected one of {", ".join(DTYPES)}, or None')
  pool = str(jax.tree.leaves(source.variables['params'])[0].dtype)
  known = [source.dtype or pool, pool]
  return given or min(known, key=lambda name: jnp.dtype(name).itemsize)


def _check_place(directory: Path, overwrite: bool) -> None:
  """Raises `UserError` unless the directory can be made, or holds a network that may go."""
  if not directory.parent.is_dir():
    raise UserError(f'{directory}: expected {directory.parent} to be a directory')
  if directory.exists() or directory.is_symlink():
    if not overwrite:
      raise UserError(f'{directory} exists: expected a new directory, or overwrite=True')
    if directory.is_symlink() or not (directory / CONFIG).is_file():
      raise UserError(f'{directory} without {CONFIG}: expected a network, to overwrite it')


def _replace(temporary: Path, directory: Path) -> None:
  """Moves what was written to its place."""
  old = directory.with_name(f'{temporary.name.removesuffix(".tmp")}-old.tmp')
  if directory.exists():
    directory.rename(old)
  temporary.rename(directory)
  shutil.rmtree(old, ignore_errors=True)


def _write(source: Pretrained, family: Family, stays: Kept, dtype: str, directory: Path) -> None:
  """Writes all files but the receipt."""
  config = smaller_config(family, source.config, stays.layers, dtype)
  (directory / CONFIG).write_text(json.dumps(config, indent=2) + '\n')
  origin = source.path if source.path and source.path.is_dir() else None
  for name in OTHERS:
    if origin and (origin / name).is_file():
      shutil.copyfile(origin / name, directory / name)
  if source.tokenizer is not None and not (directory / JSON).exists():
    source.tokenizer.save(str(directory / JSON))
  tensors = ((name, _as(array, dtype, name)) for name, array in _tensors(source, family, stays))
  files, total = _shards(tensors, directory)
  if len(files) > 1:
    names = {name: _shard(i, len(files)) for i, tensors in enumerate(files) for name in tensors}
    index = {'metadata': {'total_size': total}, 'weight_map': names}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + '\n')


def _as(array: Shaped[np.ndarray, '...'], dtype: str, name: str) -> Shaped[np.ndarray, '...']:
  """Returns a tensor in a dtype; raises `UserError` for numbers that it does not have."""
  with np.errstate(over='ignore'):
    cast = np.ascontiguousarray(array, jnp.dtype(dtype))
  if not np.isfinite(cast).all() and np.isfinite(array).all():
    largest = float(np.abs(array).max())
    raise UserError(f'dtype {dtype!r} of {name} with {largest:.3g}: expected bfloat16 or float32')
  return cast


def _shards(
  tensors: Iterator[tuple[str, Shaped[np.ndarray, '...']]], directory: Path
) -> tuple[list[list[str]], int]:
  """Writes tensors in files of a few GiB, and returns the names in each and the bytes of all."""
  files: list[list[str]] = []
  pending: dict[str, np.ndarray] = {}
  total = 0

  def flush() -> None:
    path = directory / f'{len(files)}.part'
    safetensors.save_file(pending, path, metadata={'format': 'pt'})
    path.chmod((directory / CONFIG).stat().st_mode)  # it writes files that nobody else may read
    files.append(list(pending))
    pending.clear()

  for name, tensor in tensors:
    if pending and sum(a.nbytes for a in pending.values()) + tensor.nbytes > SHARD_BYTES:
      flush()
    pending[name] = tensor
    total += tensor.nbytes
  flush()
  for i in range(len(files)):
    name = ONE if len(files) == 1 else _shard(i, len(files))
    (directory / f'{i}.part').rename(directory / name)
  return files, total


def _shard(i: int, count: int) -> str:
  return f'model-{i + 1:05}-of-{count:05}.safetensors'


def _tensors(
  source: Pretrained, family: Family, stays: Kept
) -> Iterator[tuple[str, Shaped[np.ndarray, '...']]]:
  """Yields the tensors of the layers that stay, under their new numbers."""
  pool = flatten_dict(source.variables['params'], sep='/')
  sizes, prefix = family.sizes(source.model), family.prefix(source.config)
  for place in family.places(source.model, prefix):
    if place.layer is not None and place.layer not in stays.layers:
      continue
    array = np.asarray(pool[place.path])
    branch = place.leaf.path.split('/')[0]
    outputs = family.outputs.get(branch, ())
    if (place.layer, branch) in stays.zeroed and place.leaf.path in outputs:
      array = np.zeros_like(array)
    for name, tensor in place.leaf.write(array, sizes).items():
      start = ''
      if place.layer is not None:
        start = family.layer_name.format(stays.layers.index(place.layer))
      yield (start + name).replace('~', prefix), tensor
  yield from source.carried.items()


def _receipt(
  source: Pretrained,
  family: Family,
  structure: Structure,
  stays: Kept,
  dtype: str,
  written: Path,
  directory: Path,
  reference: bool | None,
) -> Receipt:
  """Returns what was written, compared with the structure."""
  x = _batch(family.example(source.model), source.model)
  run = lambda model, bits: jax.jit(lambda v: static(model, v, x, bits))
  want = np.asarray(run(source.model, structure)(source.variables))
  again = load(written)
  got = np.asarray(run(again.model, again.model.space.all_on())(again.variables))
  asked = logits_of_reference(written, x, family, reference)
  others = [got] if asked is None else [got, asked.logits]
  same = [float((want.argmax(-1) == other.argmax(-1)).mean()) for other in others]
  size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  pool = flatten_dict(again.variables['params'], sep='/')
  places = family.places(again.model, '')
  zero = {(stays.layers.index(i), branch) for i, branch in stays.zeroed}
  spared = sum(
    pool[place.path].size
    for place in places
    if (place.layer, place.leaf.path.split('/')[0]) in zero
  )
  return Receipt(
    directory=str(directory),
    structure=str(structure),
    layers=stays.layers,
    zeroed=tuple(f'layer_{i:02}/{branch}' for i, branch in stays.zeroed),
    params=size(again.variables) - spared,
    params_before=size(source.variables),
    written=size(again.variables),
    bytes=sum(file.stat().st_size for file in written.glob('*.safetensors')),
    dtype=dtype,
    difference=float(np.abs(want - got).max()),
    reference=None if asked is None else float(np.abs(want - asked.logits).max()),
    reference_name=None if asked is None else asked.name,
    scale=float(np.abs(want).max()),
    agreement=min(same),
  )


def _batch(example: Any, model: Any) -> Any:
  """Returns two examples by which networks are compared."""
  random = np.random.default_rng(0)
  if jnp.issubdtype(example.dtype, jnp.integer):
    tokens = min(TOKENS, getattr(model, 'max_tokens', 0) or TOKENS)
    return random.integers(0, model.num_tokens, (2, tokens), np.int32)
  return random.normal(size=(2, *example.shape[1:])).astype(np.float32)
