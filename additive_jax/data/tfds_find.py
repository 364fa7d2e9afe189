"""Finding a TensorFlow Datasets set that is prepared on disk, without the network."""

import contextlib
import difflib
import json
import os
from collections.abc import Iterator
from typing import Any

from additive_jax.data.tfds_prepare import first_line
from additive_jax.errors import UserError


def find(tfds: Any, name: str, folder: str) -> Any | None:
  """The builder of a prepared set, from its files alone, or None. The network is not used."""
  if not tfds.core.naming.is_valid_dataset_name(name):
    raise UserError(f'tfds:{name}: expected tfds:NAME[/CONFIG][:VERSION]')
  with undamaged(name, folder):
    try:
      return tfds.core.read_only_builder.builder_from_files(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
      return None


@contextlib.contextmanager
def undamaged(name: str, folder: str) -> Iterator[None]:
  """Turns what the readers raise at a file that is missing or damaged into one line."""
  from google.protobuf import json_format

  try:
    yield
  except (json_format.ParseError, json.JSONDecodeError, OSError, RuntimeError) as error:
    raise UserError(
      f'tfds:{name}: the prepared set in {folder!r} cannot be read: {first_line(error)}'
    ) from error


def check_name(tfds: Any, name: str, folder: str) -> None:
  """Raises `UserError` unless `name`, which isn't prepared in `folder`, can be prepared.

  Whether a config or version exists is known only to the builder, which preparing makes.
  """
  parsed, kwargs = tfds.core.naming.parse_builder_name_kwargs(name)
  if parsed.namespace or set(kwargs) - {'config', 'version'}:
    raise UserError(f'tfds:{name}: expected tfds:NAME[/CONFIG][:VERSION]')
  # Community sets are listed over the network, so they are left out.
  known = tfds.list_builders(with_community_datasets=False)
  if parsed.name in known:
    return
  found = os.path.join(folder, parsed.name)
  if os.path.isdir(found):
    raise UserError(
      f'tfds:{name}: no such config or version; {found!r} has '
      f'{", ".join(sorted(os.listdir(found)))}'
    )
  close = difflib.get_close_matches(parsed.name, known, n=1)
  hint = f'did you mean {close[0]!r}?' if close else 'tfds.list_builders() lists them'
  raise UserError(
    f'tfds:{name}: unknown set; expected one of the {len(known)} of TensorFlow Datasets ({hint})'
  )
