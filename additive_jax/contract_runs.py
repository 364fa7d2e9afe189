"""Clauses of the contract about a model's numbers: purity of the parts, the ways to run, off gates.

Every comparison is between separately traced programs, so hidden state cannot agree by accident.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from additive_jax import run
from additive_jax.contract import Case, reason, sentence
from additive_jax.models.additive import gate_names, parts
from additive_jax.prefix import shared_prefix
from additive_jax.structure import Structure

# Relative to the largest number compared. float32 sums of some thousand terms in another order
# differ by about 1e-6, and a stack of layers multiplies that. bfloat16 has 8 bits: 2^-8 a rounding.
TOLERANCE, LOW_TOLERANCE = 1e-4, 4e-2
APPLY = 'model.apply(variables, x, structure)'
WHAT = ('outputs', 'gradients')
GRADED = 4  # structures compared in gradients too, the first and the last of the sample among them


def parts_are_pure(case: Case) -> bool:
  """Deterministic, finite, and for each example the same whatever the others and their number."""
  half, rows = len(case.x) // 2, len(case.x)
  try:
    program = _all_parts(case)
    x, h = case.x, np.asarray(program(case.variables, case.x)['embed'])
    mixed = [np.concatenate([a[:half], _changed(a[half:])]) for a in (x, h)]
    base, *repeated, varied, alone, double = (
      jax.device_get(run_parts(case.variables, *inputs))
      for run_parts, inputs in (
        (program, (x, h)),
        (program, (x, h)),
        (_all_parts(case), (x, h)),
        (program, mixed),
        (program, (x[:1], h[:1])),
        (program, (np.concatenate([x, x]), np.concatenate([h, h]))),
      )
    )
  except Exception as error:
    case.violations.append(f'Its parts cannot be compiled together: {reason(error)}.')
    return False
  tolerance = _tolerance(case)
  sound = True
  for name, out in base.items():
    if not np.isfinite(out).all():
      case.violations.append(sentence(f'{name} gives numbers that are not finite at init.'))
      sound = False
    elif max(_distance(out, other[name]) for other in repeated) > tolerance:
      case.violations.append(
        sentence(
          f'{name} gives different numbers for the same input and parameters: it must be '
          'deterministic, without hidden random numbers or state.'
        )
      )
      sound = False
    elif tolerance < max(
      _distance(out[:half], varied[name][:half]),
      _distance(out[:1], alone[name]),
      _distance(out, double[name][:rows]),
    ):
      case.violations.append(
        sentence(
          f'{name} mixes the examples of a batch: what it gives for one changes with the others or '
          'with their number (batch statistics?), but structures are evaluated side by side along '
          'the batch axis.'
        )
      )
      case.independent = False
    elif name.startswith('site') and not out.any():
      case.notes.append(sentence(f'{name} adds nothing at init (all zeros).'))
  return sound


def ways_agree(case: Case) -> bool:
  """apply = static = conditional = masked in outputs and gradients, and shared-prefix in outputs,
  on the sampled structures."""
  model, structures = case.model, case.sample()
  case.moved = {'params': _moved(case)}
  graded = {structures[i] for i in np.linspace(0, len(structures) - 1, GRADED).astype(int)}
  bits = np.array([s.bits for s in structures])
  ways = {
    'static': (functools.partial(run.static, model), structures),
    APPLY: (model.apply, structures),
    'conditional': (functools.partial(run.conditional, model), bits),
    'masked': (functools.partial(run.masked, model), bits.astype(np.float32)),
  }
  results = {}
  for name, (forward, forms) in ways.items():
    programs = forward, _gradient(case, forward)
    if forms is not structures:  # traced: one program for all; static ones cost less uncompiled
      programs = [jax.jit(program) for program in programs]
    try:
      results[name] = [
        jax.device_get(
          [
            program(case.moved, case.x, form)
            for program in programs[: 2 if structure in graded else 1]
          ]
        )
        for structure, form in zip(structures, forms)
      ]
    except Exception as error:
      case.violations.append(f'The {name} run fails: {reason(error)}.')
      if name == 'static':
        return False
  if case.independent:
    try:
      program = jax.jit(lambda v, x: shared_prefix(model, v, x, bits))
      results['shared-prefix'] = [[np.asarray(out)] for out in program(case.moved, case.x)]
    except Exception as error:
      case.violations.append(f'The shared-prefix run fails: {reason(error)}.')
  reference = results.pop('static')
  for structure, found in zip(structures, reference):
    for what, tree in zip(WHAT, found):
      if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)):
        case.violations.append(f'The {what} of structure {structure} are not finite.')
        return True
  worst = [_compare(case, name, structures, reference, found) for name, found in results.items()]
  case.notes.append(
    f'{len(gate_names(model))} gates; {len(structures)} structures compared by static, '
    f'{", ".join(results)}, {len(graded)} of them in gradients: largest relative difference '
    f'{max(worst, default=0):.1e}.'
  )
  return True


def _compare(case, name, structures, reference, found):
  """Reports the structure where a way to run differs most from the static one, if it does."""
  largest = 0.0
  for part, what in enumerate(WHAT):
    pairs = [
      (structure, one[part], two[part])
      for structure, one, two in zip(structures, reference, found)
      if part < min(len(one), len(two))
    ]
    scale = max((_largest(one) for _, one, _ in pairs), default=0)
    for structure, one, two in pairs:
      leaves = zip(jax.tree.leaves(one), jax.tree.leaves(two))
      distance = max(_distance(a, b, scale) for a, b in leaves)
      if distance > largest:
        largest, worst = distance, structure
    if largest > _tolerance(case):
      remedy = ': leave __call__ as additive_jax.Additive has it' if name == APPLY else ''
      case.violations.append(
        f'The {what} of {name} differ from those of embed, the sites that are on, and readout, run '
        f'one after the other, at structure {worst} by {largest:.1e} of the largest{remedy}.'
      )
      break
  return largest


def off_gates_read_nothing(case: Case) -> bool:
  """With a site's own parameters replaced by NaN, a structure with its gate off is as before."""
  model, names = case.model, gate_names(case.model)
  found = parts(model, case.x)
  always = _paths(found.embed) | _paths(found.readout)
  reads = [_paths(site) for site in found.sites]
  conditional = jax.jit(functools.partial(run.conditional, model))
  apply = lambda v, x, s: model.apply(v, x, Structure(tuple(s)))
  for way, program in (('conditional', conditional), (APPLY, apply)):
    culprits = []
    for i, name in enumerate(names):
      if reads[i] & always and way == APPLY:
        case.notes.append(
          f'Embed or readout reads parameters of site {name.removesuffix("/residual")!r}: they are '
          'in use when its gate is off.'
        )
      others = np.arange(len(names)) != i
      for bits in (others, np.zeros_like(others)):
        own = reads[i] - always - set().union(*(reads[j] for j in np.flatnonzero(bits)))
        results = [program(v, case.x, bits) for v in (case.moved, _poison(case.moved, own))]
        if _distance(*results) > 0:
          culprits.append(name)
          break
    if culprits:
      case.violations.append(
        f'The {way} run reads parameters of sites whose gate is off ({", ".join(culprits)}): an '
        'off gate must skip its site, not multiply it by zero.'
      )
  return True


def _paths(tree):
  return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def _all_parts(case):
  """A freshly traced program: every part's output by name; of sites and readout on the stream h,
  where one is given."""

  def run_parts(variables, x, h=None):
    functions = case.part_functions
    out = {'embed': functions.pop('embed')(variables, x)}
    h = out['embed'] if h is None else h
    return out | {name: part(variables, h) for name, part in functions.items()}

  return jax.jit(run_parts)


def _gradient(case, forward):
  def loss(variables, x, structure):
    return case.objective(forward(variables, x, structure), case.y)[0].mean()

  return jax.grad(loss)


def _moved(case):
  """The pool a random step away from init; the pool itself where that is not finite."""
  rng = np.random.default_rng(case.seed)

  def move(leaf):
    scale = 0.5 / np.sqrt(max(4, np.prod(leaf.shape[:-1])))
    step = scale * rng.standard_normal(leaf.shape)
    return leaf + step.astype(leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

  initial = case.variables['params']
  moved = jax.tree.map(move, initial)
  out = _all_parts(case)({'params': moved}, case.x)
  return moved if all(np.isfinite(part).all() for part in out.values()) else initial


def _poison(variables, paths):
  spoil = lambda path, leaf: (
    np.full_like(leaf, np.nan)
    if jax.tree_util.keystr(path[1:]) in paths and jnp.issubdtype(leaf.dtype, jnp.floating)
    else leaf
  )
  return jax.tree_util.tree_map_with_path(spoil, variables)


def _changed(x):
  """The same examples with other values of the kind that occur in them."""
  if np.issubdtype(x.dtype, np.floating):
    return 1 - 2 * x
  return x.max() - x + x.min()


def _tolerance(case):
  program = jax.make_jaxpr(_all_parts(case))(case.variables, case.x)
  low = any(f'{name}[' in str(program) for name in ('bf16', 'f16', 'f8'))
  return LOW_TOLERANCE if low else TOLERANCE


def _largest(tree):
  return max(
    float(np.abs(np.asarray(leaf, np.float64)).max(initial=0)) for leaf in jax.tree.leaves(tree)
  )


def _distance(a, b, scale=None):
  """Largest difference relative to `scale` (default: the largest number in a); NaN counts as
  infinite."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  scale = _largest(a) if scale is None else scale
  difference = np.abs(a - b).max(initial=0)
  return float(difference / max(scale, 1e-30)) if np.isfinite(difference) else np.inf
