"""Distributed neural architectures, with and without steered skips, against dense networks of the
same compute.

Width, heads, hidden units, positions and units are those of `config.model`, a transformer. The
dense network has its `num_blocks` layers, and hidden units such that its FLOPs are what the free
DNA was measured to use; the shallow one has fewer layers, and the FLOPs of the DNA that skips.
`run` gives a result with:

  table         structures.csv: the networks as one structure each, all gates on
  variants      variants.csv: a row for each network: scores, active FLOPs, parameters
  routers       routers.csv: a row for each network and step
  modules       modules.csv: a row for each module of the last DNA, in the first seed
  paths         paths.csv: a row for each token of some test examples: its path and compute
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping

import numpy as np

from additive_jax.batches import rows
from additive_jax.data.weights import unweighted
from additive_jax.errors import UserError
from additive_jax.experiments.contenders import (
  DENSE,
  Contender,
  check_dense,
  compare,
  contenders_of,
  make_contender,
)
from additive_jax.experiments.dna_page import SKIPPING, page
from additive_jax.experiments.options import refused, selected
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session, first_input
from additive_jax.experiments.study import Result, Study
from additive_jax.models.active import active_flops, fitted
from additive_jax.models.dna import DNA, Modules
from additive_jax.report.comparison import arms_as_structures
from additive_jax.report.path_analysis import Analysis
from additive_jax.report.paths import BYTE_CLASSES, byte_classes
from additive_jax.run.inspection import inspect

log = logging.getLogger('additive_jax')

FREE, SHALLOW = 'dna', 'shallow'
# What a DNA has of the transformer.
SHARED = (
  *('width', 'num_heads', 'num_classes', 'num_tokens', 'patch_size', 'causal', 'positions'),
  *('max_tokens', 'unit'),
)


def _check(session):
  """Everything that can be said before any training."""
  options, x = session.config.dna, first_input(session.data)
  if options.skip and not session.config.balance.bias_rate:
    expected = 'a rate above 0, by which the skips are steered'
    raise refused(session.config, 'dna.skip', 'balance.bias_rate', expected=expected)
  if options.skip and check_dense(session).num_layers < 2:
    raise UserError(
      f'config.model.num_blocks {session.model.num_layers}: expected at least 2, since a shallower '
      'network is compared with the DNA that skips'
    )
  dnas = make_dnas(session)
  session.machine.check_networks([dna.model for dna in dnas])
  make_baselines(session, {dna.name: active_flops(dna.model, x) for dna in dnas})


def make_dnas(session: Session) -> list[Contender]:
  """Returns the DNA whose skips are free and, for `config.dna.skip` above 0, the one with that
  share."""
  like, options = check_dense(session), session.config.dna
  hidden = like.sizes[0]
  if set(like.sizes) != {hidden}:
    raise UserError(f'config.model.hidden {like.sizes} of DNA: expected one number')
  contenders = []
  for name, skip in ((FREE, 0.0), (SKIPPING, options.skip)):
    if name == SKIPPING and not skip:
      continue
    model = DNA(
      options.num_steps,
      hidden=hidden,
      modules=dataclasses.replace(selected(Modules, options), skip=skip),
      num_backbone=options.num_backbone,
      **{field: getattr(like, field) for field in SHARED},
    )
    contenders.append(make_contender(session, name, name, model, routed=True))
  return contenders


def make_baselines(session: Session, flops: Mapping[str, float]) -> list[Contender]:
  """Returns dense networks of the FLOPs of each DNA: `dense`, and `shallow` where one skips."""
  layers = session.model.num_layers
  dense = _dense(session, layers, flops[FREE], DENSE)
  contenders = [make_contender(session, DENSE, DENSE, dense)]
  if SKIPPING in flops:
    share = flops[SKIPPING] / flops[FREE]
    fewer = max(1, min(round(layers * share), dense.num_layers - 1))
    shallow = _dense(session, fewer, flops[SKIPPING], SHALLOW)
    contenders.append(make_contender(session, SHALLOW, DENSE, shallow))
  return contenders


def _dense(session, layers, target, name):
  """The dense network of at most that many layers whose hidden units bring it to `target`."""
  x = first_input(session.data)
  for count in range(layers, 0, -1):
    make = lambda hidden, count=count: session.model.clone(num_layers=count, hidden=hidden)
    try:
      return fitted(make, lambda model: active_flops(model, x), target, f'flops of {name}')
    except UserError:
      if count == 1:
        raise
  return None


def _stages(session: Session, records: Records) -> Iterator[list[Contender]]:
  """The DNAs, then dense networks of the FLOPs that these turned out to use."""
  dnas = make_dnas(session)
  yield dnas
  flops = {dna.name: float(np.mean([r['flops'] for r in records[dna.name]])) for dna in dnas}
  yield make_baselines(session, flops)


def _tables(session: Session, records: Records) -> Result:
  contenders = contenders_of(records)
  compared = compare(contenders, records)
  dnas = [contender for contender in contenders if contender.has_routers]
  analyses = {dna.name: _analysis(session, dna) for dna in dnas}
  summary = compared.summary | {'shallow_dearer': _shallow_dearer(compared.summary['variants'])}
  if summary['shallow_dearer']:
    log.warning('%s', summary['shallow_dearer'])
  for name, analysis in analyses.items():
    summary['variants'][name]['first_seed'] = analysis.figures()
  shown = analyses[dnas[-1].name]
  tables = {
    'structures': arms_as_structures(compared.variants, [str(c.structure) for c in contenders]),
    **compared.tables,
    'modules': shown.module_table(),
    'paths': shown.path_table(),
  }
  return Result(tables, summary, extras={'analyses': analyses})


def _shallow_dearer(variants) -> str:
  """Why the shallow network costs more than the dense one; '' where it does not.

  Each has the FLOPs of a DNA. Skips that are steered may be fewer than a free DNA takes by itself.
  """
  if SHALLOW not in variants or variants[SHALLOW]['flops'] <= variants[DENSE]['flops']:
    return ''
  skipping, free = (variants[name] for name in (SKIPPING, FREE))
  computes = [f'{dna["routers"]["kept"]:.0%} of the choices' for dna in (skipping, free)]
  return (
    f'shallow costs {variants[SHALLOW]["flops"]:.4g} FLOPs, more than dense with '
    f'{variants[DENSE]["flops"]:.4g}: it has those of dna skipping, which computes '
    f'{computes[0]} after its skips were steered, while the free dna, whose FLOPs dense has, came '
    f'to compute {computes[1]} by itself. A larger config.dna.skip steers it below that.'
  )


def _analysis(session, dna) -> Analysis:
  """What the tokens of some test examples do in the network of the first seed."""
  x, y = rows(session.test, slice(session.config.dna.examples))
  trained, modules = dna.train(session.config.seed), dna.model.modules
  chosen = inspect(dna.model, session.task, trained.variables, (x, y)).chosen
  kinds = ('attention', 'mlp', 'block', 'identity')
  assert chosen is not None, 'expected choices of a DNA'
  names = [f'{kind} {i}' for kind in kinds for i in range(getattr(modules, kind))]
  if dna.model.num_tokens:
    return Analysis(names, chosen, x, byte_classes(x), BYTE_CLASSES)
  labels = [str(label) for label in range(dna.model.num_classes)]
  return Analysis(names, chosen, x, unweighted(y).astype(np.int64), labels)


STUDY = Study('dna', _stages, check=_check, tables=_tables, page=page, baseline=DENSE)

run = STUDY.run
