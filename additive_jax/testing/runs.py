"""Clauses of the contract about a model's numbers: purity of the parts, the ways to run, off gates.

Every comparison is between separately traced programs, so hidden state cannot agree by accident.
"""

from __future__ import annotations

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np

from additive_jax import run
from additive_jax.models.additive import gate_names
from additive_jax.models.contract import reason
from additive_jax.models.reads import parts
from additive_jax.run.prefix import shared_prefix
from additive_jax.testing.case import Case, compiled, far_apart, leaves_by_path, size_of

log = logging.getLogger('additive_jax')

APPLY = 'model.apply(variables, x, structure)'


def ways_agree(case: Case) -> bool:
  """Checks that apply = static = conditional = masked in outputs and gradients, and shared-prefix
  in outputs, on the sampled structures."""
  structures = case.sample()
  bits = np.array([structure.bits for structure in structures])
  # One of the middle, and all-on if there are more than a few: gradients take long to compile.
  graded = {len(structures) // 2} | ({len(structures) - 1} if len(structures) > 3 else set())
  results = {}
  for names, way in (
    (('static', APPLY), _static),
    (('conditional',), _conditional),
    (('masked',), _masked),
    (('shared-prefix',), _shared_prefix),
  ):
    if way is _shared_prefix and not case.independent:
      continue
    log.info('check_model: %s on %d structures', ' and '.join(names), len(structures))
    try:
      results |= zip(names, jax.device_get(way(case, structures, bits, graded)))
    except _Failure as failure:
      name, error = failure.args
      case.fail(f'The {name} run fails: {reason(error)}.')
      return True
    except Exception as error:
      case.fail(f'The {names[-1]} run fails: {reason(error)}.')
  reference = results.pop('static')
  for kind, trees in zip(('outputs', 'gradients'), reference):
    for i, tree in trees.items():
      if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)):
        case.fail(f'The {kind} of structure {structures[i]} are not finite.')
        return True
  worst = [_compare(case, name, structures, reference, way) for name, way in results.items()]
  case.notes.append(
    f'{len(gate_names(case.model))} gates; {len(structures)} structures compared by static, '
    f'{", ".join(results)}, {len(graded)} of them in gradients: largest relative difference '
    f'{max(worst, default=0):.1e}.'
  )
  return True


def off_gates_read_nothing(case: Case) -> bool:
  """Checks that a structure is as before with NaN in place of the parameters that only off sites
  read; for the sampled structures, and for those residual gates that skip their site."""
  shapes, sites = parts(case.model, case.x), case.sites
  gated = [i for i, site in enumerate(sites) if site.has_residual]
  reads = [set(leaves_by_path(tree)) for tree in shapes.sites]
  ends = set(leaves_by_path(shapes.embed)) | set(leaves_by_path(shapes.readout))
  always = ends.union(*(reads[i] for i in range(len(sites)) if i not in gated))
  _, created = jax.eval_shape(
    lambda key: case.model.init_with_output(key, method=lambda module: module.sites and None),
    jax.random.key(case.seed),
  )
  # Parameters of `setup` count as read by every part, since each runs it.
  by_setup = set(leaves_by_path(created.get('params', {})))
  for i in gated:
    if reads[i] & always - by_setup:
      who = 'Embed or readout' if reads[i] & ends - by_setup else 'A site without a residual gate'
      case.notes.append(
        f'{who} reads parameters of site {sites[i].label!r}: they are in use when its gate is off.'
      )
  for way, programs in case.programs.items():
    culprits: set[int] = set()
    for structure, program in programs.items():
      off = [i for i in gated if not structure[sites[i].start]]
      on = always.union(*(reads[i] for i in gated if i not in off))
      clean = program(case.moved, case.x)
      for i in off:
        if i not in culprits:
          poisoned = program(_poison(case.moved, reads[i] - on), case.x)
          culprits |= {i} if far_apart(clean, poisoned) > 0 else set()
    if culprits:
      names = ', '.join(gate_names(case.model)[sites[i].start] for i in sorted(culprits))
      case.fail(
        f'The {way} run reads parameters of sites whose gate is off ({names}): an off gate must '
        'skip its site, not multiply it by zero.'
      )
  return True


class _Failure(Exception):
  """A way to run by name, and the error it gave."""


# The ways to run. Each gives, for every name it is about, the pair {number of a structure:
# outputs}, {number of a structure: gradients}.


def _static(case, structures, bits, graded):
  """Runs structures statically and by `model.apply`, traced apart but compiled together: what the
  two have in common costs once."""
  ways = {'static': functools.partial(run.static, case.model), APPLY: case.model.apply}
  results = [({}, {}) for _ in ways]
  case.programs[APPLY] = {}
  for i, structure in enumerate(structures):
    program = _both(case, ways.values(), structure, i in graded)
    try:
      both = program(case.moved, case.x)
    except Exception as error:
      raise _Failure(_culprit(case, ways, structure), error) from error
    for (outputs, gradients), result in zip(results, both):
      outputs[i] = result[0]
      gradients |= {i: result[1]} if i in graded else {}
    case.programs[APPLY][structure] = lambda v, x, program=program: program(v, x)[-1][0]
  return results


def _culprit(case, ways, structure) -> str:
  """Returns which of several ways to run a structure fails."""
  for name, way in ways.items():
    try:
      jax.eval_shape(lambda v, x, way=way: way(v, x, structure), case.moved, case.x)
    except Exception:
      return name
  return next(iter(ways))


def _both(case, ways, structure, graded: bool):
  """Returns one program of several ways to run a static structure: for each [outputs], or [outputs,
  gradient]."""

  def forward(way, variables, x):
    if graded:
      return _with_gradient(case, way)(variables, x, structure)
    return (way(variables, x, structure),)

  return compiled(lambda variables, x: [forward(way, variables, x) for way in ways])


def _conditional(case, structures, bits, graded):
  program = compiled(_with_gradient(case, functools.partial(run.conditional, case.model)))
  results = _traced(case, program, bits, graded)
  case.programs['conditional'] = {
    structure: lambda v, x, row=row: program(v, x, row)[0]
    for structure, row in zip(structures, bits)
  }
  return [results]


def _masked(case, structures, bits, graded):
  """Runs structures with gates per example; where examples are independent, also different
  structures in one batch."""
  program = compiled(_with_gradient(case, functools.partial(run.masked, case.model)))
  rows = case.num_examples
  gates = [np.broadcast_to(row, (rows, len(row))).astype(np.float32) for row in bits]
  outputs, gradients = _traced(case, program, gates, graded)
  if case.independent:
    # Example r runs in structure r mod S; its row replaces the one in that structure's outputs.
    number = np.arange(rows) % len(bits)
    mixed = np.asarray(program(case.moved, case.x, bits[number].astype(np.float32))[0])
    for i in outputs:
      in_structure = (number == i).reshape(-1, *(1,) * (mixed.ndim - 1))
      outputs[i] = np.where(in_structure, mixed, outputs[i])
  return [(outputs, gradients)]


def _traced(case, program, gates, graded):
  results = [jax.device_get(program(case.moved, case.x, value)) for value in gates]
  return {i: out for i, (out, _) in enumerate(results)}, {i: results[i][1] for i in graded}


def _shared_prefix(case, structures, bits, graded):
  program = compiled(lambda v, x: shared_prefix(case.model, v, x, bits))
  return [(dict(enumerate(program(case.moved, case.x))), {})]


def _compare(case, name, structures, reference, results) -> float:
  """Notes the structure where a way to run differs most from the static one, if it does; returns
  the largest relative difference."""
  largest = 0.0
  for kind, one, two in zip(('outputs', 'gradients'), reference, results):
    scale = max(map(size_of, one.values()))
    for i in two:
      leaves = zip(jax.tree.leaves(one[i]), jax.tree.leaves(two[i]))
      distance = max(far_apart(a, b, scale) for a, b in leaves)
      if distance > largest:
        largest, worst = distance, structures[i]
    if largest > case.tolerance:
      remedy = ': leave __call__ as additive_jax.Additive has it' if name == APPLY else ''
      case.fail(
        f'The {kind} of {name} differ from those of embed, the sites that are on, and readout, run '
        f'one after the other, at structure {worst} by {largest:.1e} of the largest{remedy}.'
      )
      break
  return largest


def _with_gradient(case, forward):
  """Returns a function to the outputs of a way to run, and the gradient of the mean loss."""

  def both(variables, x, structure):
    def loss(variables):
      outputs = forward(variables, x, structure)
      return case.task.mean_loss(outputs, case.y), outputs

    gradient, outputs = jax.grad(loss, has_aux=True)(variables)
    return outputs, gradient

  return both


def _poison(variables, paths):
  """Returns the variables with NaN in the leaves of these paths, which are within `params`."""

  def spoil(path, leaf):
    poisoned = jax.tree_util.keystr(path[1:]) in paths and jnp.issubdtype(leaf.dtype, jnp.floating)
    return np.full_like(leaf, np.nan) if poisoned else leaf

  return jax.tree_util.tree_map_with_path(spoil, variables)
