"""A training step of a distributed neural architecture against a dense network of as many
sublayers.

Claim: dropless, at most 2.0 times the step of the dense network of 10 sublayers.

Method: bytes, vocabulary 256, T=128, B=4, D=128, 4 heads, SwiGLU with H=4·D. DNA: 2 dense
sublayers, then 4 steps of top 2 over 4 attention, 4 feed-forward and 2 identity modules; as many
active sublayers as the dense network has, less what identities skip. The trainer's own
`train_step`, AdamW, float32; the biases of the identities are not steered. Both compiled, then
timed in turn from the first steps on, where the routers of a fresh network spread the tokens. Then
the same for DNAs whose share of skipped choices is steered to 0.3 and 0.6, after as many steps as
it takes to settle; the share is the mean over the steps that were timed.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing

from additive_jax.gates.subsets import Subsets
from additive_jax.models import Transformer
from additive_jax.models.additive import gate_names
from additive_jax.models.dna import DNA, Modules
from additive_jax.train.balance import Balance
from additive_jax.train.gradients import Slots
from additive_jax.train.losses import PerSample, Routed
from additive_jax.train.recipe import Recipe
from additive_jax.train.state import init_state, train_step

VOCABULARY, TOKENS, BATCH, WIDTH, HEADS, REPEATS = 256, 128, 4, 128, 4, 15
SETTLING, RATE = 200, 0.01  # steps before skips are timed, and what a step moves their biases by
SHAPE = {
  'width': WIDTH,
  'num_heads': HEADS,
  'hidden': 4 * WIDTH,
  'num_classes': VOCABULARY,
  'num_tokens': VOCABULARY,
  'causal': True,
  'positions': 'rope',
  'unit': 'swiglu',
}
DENSE = 'dense, 10 sublayers'


def dna(skip=0.0):
  """The DNA, and its loss."""
  model = DNA(4, modules=Modules(4, 4, 0, 2, 2, skip=skip), num_backbone=2, **SHAPE)
  return model, Routed(Balance(bias_rate=RATE))


MODELS = {
  DENSE: (Transformer(5, **SHAPE), PerSample(subsets=Subsets(((1.0,) * 10,)))),
  'DNA': dna(),
}
STEERED = {'DNA, skips free': dna()} | {f'DNA, skips {r}': dna(r) for r in (0.3, 0.6)}

rng = np.random.default_rng(0)
x, y = rng.integers(0, VOCABULARY, (2, 1, BATCH, TOKENS)).astype(np.uint8)


def stepper(model, loss):
  """A function that takes a step and gives its loss, and a list of the shares that steps skip."""
  recipe = Recipe(model, 'language', optax.adamw(1e-3), loss)
  bits = jnp.ones((1, len(gate_names(model))), bool)
  slots = Slots(bits, x, y, jax.random.split(jax.random.key(0), 1), jnp.int32(0))
  step = jax.jit(functools.partial(train_step, recipe), donate_argnums=0)
  held, skipped = [init_state(recipe, model.init(jax.random.key(0), x[0]))], []

  def run():
    held[0], values = step(held[0], slots)
    skipped.append([1 - site.kept for site in values['facts'].values()])
    return values['loss']

  return run, skipped


def main():
  steppers = {name: stepper(*made) for name, made in MODELS.items()}
  times = timing.alternate({name: run for name, (run, _) in steppers.items()}, REPEATS)
  rows = []
  for name, found in times.items():
    value = timing.ratio(times, name, DENSE)
    verdict = '' if name == DENSE else timing.verdict(value, most=2)
    spread = f'{found.spread:.0%}'
    rows.append([name, f'{found.best * 1e3:.0f}', spread, f'{value:.2f}', verdict])
  head = ['network', 'best, ms a step', 'spread', 'of dense (median)']
  timing.report(f'DNA step: T={TOKENS}, B={BATCH}, D={WIDTH}', [*head, 'target'], rows)

  steppers = {DENSE: steppers[DENSE]} | {n: stepper(*made) for n, made in STEERED.items()}
  for run, _ in steppers.values():
    for _ in range(SETTLING):
      run()
  times = timing.alternate({name: run for name, (run, _) in steppers.items()}, REPEATS)
  rows = []
  for name, found in times.items():
    share = np.mean(steppers[name][1][-REPEATS:]) if name != DENSE else 0
    value = timing.ratio(times, name, DENSE)
    spread = f'{found.spread:.0%}'
    rows.append([name, f'{found.best * 1e3:.0f}', spread, f'{value:.2f}', f'{share:.3f}'])
  print()
  timing.report(f'After {SETTLING} steps', [*head, 'share skipped'], rows)


if __name__ == '__main__':
  main()
