"""A network that was cut out, as files that stand alone.

  additive-jax export RUN --structure=1101 --to=DIR     (or python -m additive_jax.export RUN …)

writes one structure of a pool of the run in the directory RUN, finished or stopped: only the
parameters that it reads, which `load(DIR)` gives back with a plain module, without gates. Units
that a compression has pruned, which only zeros write or read, are cut out.

  --structure=BITS       one bit a gate, gate 0 first; the run's config.json names the gates
  --to=DIR               must not exist yet; the directory it lies in must
  --overwrite            DIR may hold a network that was exported before, which is replaced
  --checkpoint=NAME      which pool, a folder of RUN/checkpoints (default: the first of
                         the config's model; of a compression, of variational dropout)
  --model=MODULE:CLASS   the network's class, if it is one of your own
  --ema                  the mean of the pool over the steps, of a run with config.train.ema
  --alone                what the structure became that was trained alone, in place of a pool that
                         all share: of Exp 2, and of Exp 1 with config.sweep.keep_alone
  --seed=N               of which seed, with --alone (default: the first of the run)

DIR then holds `model.safetensors`, `orbax/` with the same parameters and their checksums (for plain
Orbax in `orbax/0/state`), and `model.json`: config, gates, structure, shapes, costs, and the
largest difference of the outputs between the pool and what was exported, on a batch of the run's
data; and of a table how its columns became inputs, which `coding(DIR)` gives back for new rows.

Exit codes: 0 done; 2 a mistake in what was asked, told in one line, with nothing written.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import PyTree

from additive_jax.cli.arguments import parse_flags
from additive_jax.cli.command import answered, run_command
from additive_jax.compress.cutting import Cut, cost, cut, receipt, spaces, used
from additive_jax.compress.exported import CODING, check_new, coding, export, load
from additive_jax.data import Data
from additive_jax.errors import UserError, user_path
from additive_jax.experiments.front import made
from additive_jax.experiments.pools import ignored_label, open_pools
from additive_jax.files.progress import setup_logging
from additive_jax.files.quantities import bytes_text
from additive_jax.gates.structure import Structure, parse
from additive_jax.models.additive import Additive, gate_names
from additive_jax.run.recalibration import recalibrate
from additive_jax.transplant.growth import Receipt

__all__ = ['coding', 'export', 'export_run', 'load', 'main']

log = logging.getLogger('additive_jax')

BATCH = 64  # examples of the receipt
FLAGS = ('structure', 'to', 'checkpoint', 'model')


def export_run(
  run: str | Path,
  structure: str | Structure,
  to: str | Path,
  *,
  checkpoint: str = '',
  model: Any = '',
  data: Any = None,
  ema: bool = False,
  alone: bool = False,
  seed: int | None = None,
  overwrite: bool = False,
) -> Path:
  """Writes one structure of one pool of a run, or of what it became alone, logs its receipt and
  costs, and returns `to`.

      aj.export_run('runs/exp2-23dffc16', '110111', 'small')
      model, variables = aj.export.load('small')

  Args:
    run: the run directory.
    structure: text, gate 0 first.
    to: the directory to make.
    checkpoint: a folder of the run's checkpoints; '' is the first of the config's model.
    model: the network that the run was given in Python, or `module:Class` of one of your own; ''
      makes the library's that its config names.
    data: what the run was given in Python, as `sweep` takes it; None is what its config names.
    ema: whether it is of the mean of the pool over the steps, which `config.train.ema` keeps.
    alone: whether it is the network that was trained alone, as `alone_loss` of Exp 2 and `loss` of
      a sweep are; Exp 2 keeps these, and a sweep with `config.sweep.keep_alone`.
    seed: of such a network; None is the first of the run.
    overwrite: whether `to` may hold a network that was exported before, which is replaced.

  Raises:
    UserError: for anything that does not fit; nothing is written then.
  """
  _check_alone(checkpoint, ema, alone, seed)
  to = user_path(to, '--to')
  check_new(to, overwrite)
  given = None if data is None else made(data, ignore_label=ignored_label(run))
  pools = open_pools(run, network=model, data=given, alone=alone)
  network, test = pools.model, pools.data.test
  structure = parse(structure, len(gate_names(network)))  # before anything is read
  x = jax.tree.map(jnp.asarray, test[np.arange(min(BATCH, len(test)))][0])
  if alone:
    number, pool, scores = pools.read_alone(x, structure, seed)
    words, notes = f'alone, seed {number}', {'alone': True, 'seed': number, 'scores': scores}
  else:
    name, saved = pools.read(x, checkpoint, structure=structure, ema=ema)
    words, pool = f'{name}, step {saved.step}', saved.variables
    notes = {'checkpoint': name, 'step': saved.step, 'ema': ema}
  (variables,) = recalibrate(network, pool, [structure], pools.data.train)
  smaller = cut(network, variables, structure, _used(network, variables), x)
  notes |= {'run': Path(run).resolve().name} | _coding(pools.data)
  log.info('%s: %s', words, _noted(notes, smaller, network, variables, x))
  directory = export(smaller, to, notes=notes, overwrite=overwrite)
  if not alone and pools.has_both:
    log.info('%s is what all structures share: --alone takes what was trained alone', words)
  log.info('wrote %s', directory)
  return directory


def _noted(
  notes: dict[str, Any], smaller: Cut, network: Additive, variables: PyTree, x: PyTree
) -> Receipt:
  """Adds receipt and costs of what was cut out to notes, logs these, and returns the receipt."""
  found = receipt(smaller, network, variables, x)
  costs = {
    'pool': cost(network, variables, x)._asdict(),
    'exported': cost(smaller.model, smaller.variables, x)._asdict(),
  }
  notes |= {'receipt': dataclasses.asdict(found), 'cost': costs}
  for unit, text in (('flops', '{:,}'.format), ('bytes', bytes_text)):
    before, after = (text(costs[side][unit]) for side in ('pool', 'exported'))
    log.info('%s: %s in the pool with all gates on, %s exported', unit, before, after)
  return found


def _coding(data: Data) -> dict[str, Any]:
  """Returns what notes say of how a table became the inputs of the network."""
  return {} if data.coding is None else {CODING: data.coding.described()}


def _check_alone(checkpoint: str, ema: bool, alone: bool, seed: int | None) -> None:
  """Raises `UserError` for what does not go together."""
  if alone and checkpoint:
    raise UserError(f'checkpoint {checkpoint!r} with alone: expected one of the two')
  if alone and ema:
    raise UserError(
      'ema with alone: expected one of the two, the mean of a network alone is judged and not kept'
    )
  if seed is not None and not alone:
    raise UserError(
      f'seed {seed} without alone: expected checkpoint, which names a pool and its seed'
    )


def _used(network: Additive, variables: PyTree) -> dict[str, np.ndarray] | None:
  """The units that a pool uses, of a network that has some which can be cut."""
  return used(network, variables) if spaces(network, variables) else None


def main(argv: list[str]) -> int:
  """Exports what the command line `argv` names, and returns the exit code."""
  return answered(_run, argv, __doc__)


def _run(argv: list[str]) -> int:
  values, run = _parse(argv)
  setup_logging()
  options: dict[str, Any] = {
    n: values[n].value for n in ('checkpoint', 'model', 'ema', 'alone', 'seed', 'overwrite')
  }
  export_run(run, values.structure, values.to, **options)
  return 0


def _parse(argv: list[str]) -> tuple[flags.FlagValues, str]:
  """The flags and the run directory."""
  values = flags.FlagValues()
  for name in FLAGS:
    flags.DEFINE_string(name, '', '', flag_values=values)
  for name in ('ema', 'alone', 'overwrite'):
    flags.DEFINE_bool(name, False, '', flag_values=values)
  flags.DEFINE_integer('seed', None, '', lower_bound=0, flag_values=values)
  runs = parse_flags(values, argv)[1:]
  if len(runs) != 1:
    raise UserError(f'{" ".join(runs) or "no run"}: expected one run directory')
  for name in ('structure', 'to'):
    if not values[name].value:
      raise UserError(f'no --{name}: expected RUN --structure=BITS --to=DIR')
  return values, runs[0]


if __name__ == '__main__':
  sys.exit(run_command(main, sys.argv))
