"""Sites that differ in parameters of their own alone: one is compiled, as the body of a loop.

A model says which of its sites are alike by an attribute `alike`, a range of their numbers. They
read the same leaves but for those under their own names, which have the same shapes in all of them.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from additive_jax.models.additive import sites_of, step_leaving
from additive_jax.models.sites import Stream
from additive_jax.models.surrounding import in_mode, mode


def stretches(model: nn.Module) -> list[range]:
  """Returns the numbers of the sites in order, those that are alike together.

  >>> from additive_jax.models import DNA
  >>> sizes = {'width': 8, 'num_heads': 2, 'hidden': 16, 'num_classes': 3}
  >>> stretches(DNA(num_steps=3, num_backbone=2, **sizes))
  [range(0, 1), range(1, 2), range(2, 5)]
  """
  alike, count = getattr(model, 'alike', range(0)), len(sites_of(model))
  starts = [i for i in range(count) if i not in alike[1:]]
  return [range(*pair) for pair in zip(starts, [*starts[1:], count], strict=True)]


def steps_leaving(
  model: nn.Module,
  variables: PyTree,
  sites: range,
  h: Stream,
  leaving: Sequence[str],
  rngs: Mapping[str, PRNGKeyArray],
) -> tuple[Stream, dict[str, dict[str, Any]]]:
  """Returns the stream after some sites that are alike with all their gates on, and by name of a
  collection and of a site what that site left, see `additive.step_leaving`."""
  names = [sites_of(model)[i].label.replace('/', '__') for i in sites]
  first, now = sites.start, mode()

  def run(h: Stream, variables: PyTree) -> tuple[Stream, dict[str, Any]]:
    h, collections = step_leaving(model, variables, first, h, leaving, rngs)
    return h, {name: left[names[0]]['left'] for name, left in collections.items()}

  if len(sites) == 1:
    h, left = run(h, variables)
    return h, {name: {names[0]: value} for name, value in left.items()}

  params = variables['params']

  def in_loop(h: Stream, site: tuple[Int[Array, ''], PyTree]) -> tuple[Stream, dict[str, Any]]:
    place, own = site
    with in_mode(dataclasses.replace(now, first_site=now.first_site + place)):
      return run(h, {**variables, 'params': {**params, names[0]: own}})

  own = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[params[name] for name in names])
  h, left = jax.lax.scan(in_loop, h, (jnp.arange(len(sites)), own))
  of_site = lambda i, value: jax.tree.map(operator.itemgetter(i), value)
  by_site = lambda value: {name: of_site(i, value) for i, name in enumerate(names)}
  return h, {name: by_site(value) for name, value in left.items()}
