"""The buffers that hold the streams of a walk, see `prefix`, and how large they are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Int, PyTree

from additive_jax.batches import Shapes, cached, shapes_of
from additive_jax.models.additive import Stream, sites_of, update
from additive_jax.models.reads import parts
from additive_jax.models.side import stream_of


def buffers(streams: Sequence[Any]) -> tuple[Int[np.ndarray, ' streams'], list[Any]]:
  """Returns the number of the buffer of each stream, and what the slots of each buffer hold: there
  is one for each stretch of sites between which the stream keeps its shape."""
  streams = [stream_of(stream) for stream in streams]
  changes = [(a.shape, a.dtype) != (b.shape, b.dtype) for a, b in itertools.pairwise(streams)]
  return np.cumsum([0, *changes]), [streams[0], *itertools.compress(streams[1:], changes)]


def streams_of(model: nn.Module, variables: PyTree, h: Stream) -> list[Any]:
  """Returns the shapes of the stream that each site takes and of the one that readout takes."""
  streams = [shapes_of(h)]
  for i in range(len(sites_of(model))):
    after = jax.eval_shape(lambda v, h, i=i: update(model, v, i, h), variables, streams[-1])
    streams.append(shapes_of(after))
  return streams


@cached(maxsize=256)
def slot_size(model: nn.Module, x: Shapes) -> tuple[int, int]:
  """Returns the bytes of one slot in all buffers, and the rows of the first stream, its positions
  times its examples, for inputs of that shape and type.

  A stream of width 4, float32, for each of 5 examples:

  >>> model = aj.models.MLP(num_blocks=3, width=4, hidden=8, num_classes=2)
  >>> slot_size(model, jax.ShapeDtypeStruct((5, 6), 'float32'))
  (80, 5)
  """
  streams = parts(model, x).streams
  bytes_ = [stream.size * stream.dtype.itemsize for stream in buffers(streams)[1]]
  first = stream_of(streams[0])
  return sum(bytes_), first.size // first.shape[-1]
