"""How networks go on with test texts, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Integer, PyTree

from additive_jax.batches import is_array
from additive_jax.data.tokenizer import read_tokenizer
from additive_jax.data.weights import unweighted
from additive_jax.experiments.session import Session
from additive_jax.files.journal import Record
from additive_jax.gates.structure import Structure
from additive_jax.run.generation import continued

BYTES = 256
PROMPT = 48  # tokens at most of a text that is gone on from


def continuations(session: Session, pools: Mapping[str, tuple[PyTree, Structure]]) -> list[Record]:
  """Returns a row for each text: its beginning, how it really goes on, and how each network does;
  none for networks that are no causal language models.

  Args:
    session: the run.
    pools: by name a pool and a structure.
  """
  options, model = session.config.prune, session.model
  is_causal = getattr(model, 'causal', False) and session.data.task_name == 'language'
  count = min(options.samples, len(session.data.test))
  if not is_causal or not count:
    return []
  x, y = session.data.test[np.linspace(0, len(session.data.test) - 1, count).astype(int)]
  tokens = x if is_array(x) else x['tokens']
  room = tokens.shape[1] - 1
  length = max(1, min(PROMPT, room - min(options.sample_tokens, room // 2)))
  follow = min(options.sample_tokens, tokens.shape[1] - length)
  given = {'prompt': tokens[:, :length], 'text': unweighted(y)[:, length - 1 : length - 1 + follow]}
  for name, (variables, structure) in pools.items():
    given[name] = continued(model, variables, tokens[:, :length], structure, follow)
  decode = decoder_of(session)
  return [{name: decode(rows[i]) for name, rows in given.items()} for i in range(count)]


def decoder_of(session: Session) -> Any:
  """Returns a function from tokens to text: that of the tokenizer, or of bytes."""
  tokenizer = None if session.pretrained is None else session.pretrained.tokenizer
  if path := session.config.data.tokenizer:
    tokenizer = read_tokenizer(path)

  def decode(tokens: Integer[np.ndarray, ' T']) -> str:
    if tokenizer is not None:
      return str(tokenizer.decode(tokens.tolist()))
    if session.data.num_outputs > BYTES:  # of a tokenizer that the run does not know
      return ' '.join(map(str, tokens.tolist()))
    return bytes(np.asarray(tokens, np.uint8)).decode('utf-8', 'replace')

  return decode
