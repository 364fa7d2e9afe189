"""Clauses of the contract about a model's numbers: purity of the parts, the ways to run, off gates.

Every comparison is between separately traced programs, so hidden state cannot agree by accident.
"""

from __future__ import annotations

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


def parts_are_pure(case: Case) -> bool:
  """Deterministic, finite, and for each example the same whatever the others and their number."""
  half = len(case.x) // 2
  mixed = np.concatenate([case.x[:half], _changed(case.x[half:])])
  twice = np.concatenate([case.x, case.x])
  try:
    program = _all_parts(case)
    base, repeated, varied, alone, double = (
      jax.device_get(program(case.variables, x, len(x) - kept))
      for x, kept in (
        (case.x, len(case.x)),
        (case.x, len(case.x)),
        (mixed, half),
        (case.x[:1], 1),
        (twice, len(twice)),
      )
    )
    retraced = jax.device_get(_all_parts(case)(case.variables, case.x, 0))
  except Exception as error:
    case.violations.append(f'Its parts cannot be compiled together: {reason(error)}')
    return False
  tolerance = _tolerance(case)
  sound = True
  for name, out in base.items():
    if not np.isfinite(out).all():
      case.violations.append(sentence(f'{name} gives numbers that are not finite at init.'))
      sound = False
    elif max(_distance(out, repeated[name]), _distance(out, retraced[name])) > tolerance:
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
      _distance(out, double[name][: len(out)]),
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
  case.pool = _moved(case)
  bits = np.array([s.bits for s in structures])
  ways = {
    'static': (lambda v, x, s: run.static(model, v, x, s), structures),
    APPLY: (lambda v, x, s: model.apply(v, x, s), structures),
    'conditional': (lambda v, x, s: run.conditional(model, v, x, s), bits),
    'masked': (lambda v, x, s: run.masked(model, v, x, s), bits.astype(np.float32)),
  }
  results = {}
  for name, (forward, forms) in ways.items():
    program = _judged(case, forward)
    if forms is not structures:  # traced: one program for all; static ones cost less uncompiled
      program = jax.jit(program)
    try:
      results[name] = [jax.device_get(program(case.pool, case.x, case.y, form)) for form in forms]
    except Exception as error:
      case.violations.append(f'The {name} run fails: {reason(error)}')
      if name == 'static':
        return False
  if case.independent:
    try:
      outputs = jax.jit(lambda p, x: shared_prefix(model, {'params': p}, x, bits))(
        case.pool, case.x
      )
      results['shared-prefix'] = [(np.asarray(out), None) for out in outputs]
    except Exception as error:
      case.violations.append(f'The shared-prefix run fails: {reason(error)}')
  reference = results.pop('static')
  for structure, result in zip(structures, reference):
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result)):
      what = 'outputs' if not np.isfinite(result[0]).all() else 'gradients'
      case.violations.append(f'The {what} of structure {structure} are not finite.')
      return True
  worst = [_compare(case, name, structures, reference, found) for name, found in results.items()]
  case.notes.append(
    f'{len(gate_names(model))} gates; {len(structures)} structures compared by static, '
    f'{", ".join(results)}: largest relative difference {max(worst, default=0):.1e}.'
  )
  return True


def _compare(case, name, structures, reference, found):
  """Reports the structure where a way to run differs most from the static one, if it does."""
  largest = 0.0
  for part, what in enumerate(('outputs', 'gradients')):
    if found[0][part] is None:
      continue
    scale = max(_largest(result[part]) for result in reference)
    distance = [
      max(_distance(a, b, scale) for a, b in zip(*map(jax.tree.leaves, (one[part], two[part]))))
      for one, two in zip(reference, found)
    ]
    worst = int(np.argmax(distance))
    largest = max(largest, distance[worst])
    if distance[worst] > _tolerance(case):
      remedy = ': leave __call__ as additive_jax.Additive has it' if name == APPLY else ''
      case.violations.append(
        f'The {what} of {name} differ from those of embed, the sites that are on, and readout, run '
        f'one after the other, at structure {structures[worst]} by {distance[worst]:.1e} of the '
        f'largest{remedy}.'
      )
      break
  return largest


def off_gates_read_nothing(case: Case) -> bool:
  """With a site's own parameters replaced by NaN, a structure with its gate off is as before."""
  model, names = case.model, gate_names(case.model)
  found = parts(model, case.x)
  always = _paths(found.embed) | _paths(found.readout)
  reads = [_paths(site) for site in found.sites]
  conditional = jax.jit(lambda p, s: run.conditional(model, {'params': p}, case.x, s))
  apply = lambda p, s: model.apply({'params': p}, case.x, Structure(tuple(s)))
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
        results = [program(p, bits) for p in (case.pool, _poison(case.pool, own))]
        if _distance(*results) > 0:
          culprits.append(name)
          break
    if culprits:
      case.violations.append(
        f'The {way} run reads parameters of sites whose gate is off ({", ".join(culprits)}): an off '
        'gate must skip its site, not multiply it by zero.'
      )
  return True


def _paths(tree):
  return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def _all_parts(case):
  """A freshly traced program: every part's output, by name, sites and readout on embed's stream.

  Of the stream, the last `changed` examples are moved after embed, so that sites and readout see
  examples of which some changed even where embed itself mixes nothing.
  """

  def run_parts(variables, x, changed):
    functions = case.part_functions
    h = functions.pop('embed')(variables, x)
    rows = jnp.arange(len(h)).reshape((-1,) + (1,) * (h.ndim - 1))
    moved = jnp.where(rows >= len(h) - changed, 1 - 2 * h, h)
    return {'embed': h} | {name: part(variables, moved) for name, part in functions.items()}

  return jax.jit(run_parts)


def _judged(case, forward):
  def loss(params, x, y, structure):
    outputs = forward({'params': params}, x, structure)
    return case.objective(outputs, y)[0].mean(), outputs

  def judged(params, x, y, structure):
    (_, outputs), gradient = jax.value_and_grad(loss, has_aux=True)(params, x, y, structure)
    return outputs, gradient

  return judged


def _moved(case):
  """The pool a random step away from init; the pool itself where that is not finite."""
  rng = np.random.default_rng(case.seed)

  def move(leaf):
    scale = 0.5 / np.sqrt(max(4, np.prod(leaf.shape[:-1])))
    step = scale * rng.standard_normal(leaf.shape)
    return leaf + step.astype(leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

  initial = case.variables['params']
  moved = jax.tree.map(move, initial)
  out = _all_parts(case)({'params': moved}, case.x, 0)
  return moved if all(np.isfinite(part).all() for part in out.values()) else initial


def _poison(params, paths):
  spoil = lambda path, leaf: (
    np.full_like(leaf, np.nan)
    if jax.tree_util.keystr(path) in paths and jnp.issubdtype(leaf.dtype, jnp.floating)
    else leaf
  )
  return jax.tree_util.tree_map_with_path(spoil, params)


def _changed(x):
  """The same examples with other values of the kind that occur in them."""
  if np.issubdtype(x.dtype, np.floating):
    return 1 - 2 * x
  return x.max() - x + x.min()


def _tolerance(case):
  program = jax.make_jaxpr(_all_parts(case))(case.variables, case.x, 0)
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
