"""The devices of a run, and where on them a pool is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from additive_jax.experiments.options import TrainOptions, selected
from additive_jax.parallel import layout
from additive_jax.parallel.placement import Placement
from additive_jax.train.recipe import Recipe
from additive_jax.train.samplers import Sampler
from additive_jax.train.trainer import default_mesh


@dataclasses.dataclass(frozen=True)
class Machine:
  """The devices of a run.

  Attributes:
    devices: those of the mesh that pools are trained on.
    options: how pools are laid out on them.
  """

  devices: Sequence[jax.Device]
  options: TrainOptions

  @property
  def workers(self) -> list[jax.Device] | None:
    """This process's devices for work without a mesh; None on CPU, where cores count."""
    local = [device for device in self.devices if device.process_index == jax.process_index()]
    return None if local[0].platform == 'cpu' else local

  def placement(self, model: Any, recipe: Recipe, sampler: Sampler) -> Placement:
    """Returns where a pool of the model is trained."""
    spread = self.options.expert_devices if layout.has_experts(model) else 1
    mesh = default_mesh(recipe, sampler, self.options.batch_size, self.devices, spread)
    return selected(Placement, self.options, mesh=mesh, chunk_steps=self.options.log_every)

  def check_experts(self, networks: Iterable[Any]) -> None:
    """Raises `UserError` where `config.train.expert_devices` suits none of the networks of a run,
    or does not divide the experts of one that has some."""
    networks = list(networks)
    for network in [n for n in networks if layout.has_experts(n)] or networks:
      layout.local_model(network, self.options.expert_devices)
