"""How long the networks of DNA and of Exp 4 compile, and how long a step of each takes.

Claim: under 15 s a network, of the program of its training steps and the program that looks at what
its tokens choose, with nothing kept from before.

Method: the networks of configs/dna_lm.py, dna_vision.py, exp4.py and exp4_vision.py as their runs
make them, on the first device. Each program is traced, lowered and compiled once; CPU seconds of
the process, since other programs on the same cores lengthen wall time more. A step is the mean over
a chunk of the trainer's, the least of several.

  python benchmarks/compile.py                    all networks
  python benchmarks/compile.py dna_lm exp4        those of some configs
  python benchmarks/compile.py dna_lm:dna         one network
"""

from __future__ import annotations

import collections
import importlib
import sys
import tempfile
import time

import jax
import numpy as np
import timing

from additive_jax.experiments.contenders import check_dense
from additive_jax.experiments.dna import make_baselines, make_dnas
from additive_jax.experiments.experts import make_contenders
from additive_jax.experiments.opening import open_session
from additive_jax.models.active import active_flops
from additive_jax.models.additive import initial
from additive_jax.run.inspection import inspect

CONFIGS = ('dna_lm', 'dna_vision', 'exp4', 'exp4_vision')
TARGET, STEPS, REPEATS = 15, 5, 4
PHASES = {
  '/jax/core/compile/jaxpr_trace_duration': 'trace',
  '/jax/core/compile/jaxpr_to_mlir_module_duration': 'lower',
  '/jax/core/compile/backend_compile_duration': 'compile',
}
spent = collections.Counter()
jax.monitoring.register_event_duration_secs_listener(
  lambda event, seconds, **_: spent.update({PHASES.get(event, 'other'): seconds})
)


def networks(session):
  """The contenders of a run, as its study makes them."""
  if session.config.experiment == 'experts':
    return make_contenders(session)
  dnas, x = make_dnas(session), session.test[0][:1]
  return dnas + make_baselines(session, {dna.name: active_flops(dna.model, x) for dna in dnas})


def measured(run):
  """CPU seconds of a call, and wall seconds of its phases."""
  spent.clear()
  start = time.process_time()
  jax.block_until_ready(run())
  return time.process_time() - start, dict(spent)


def row(config, contender, steps):
  """What one network takes."""
  session = contender.session
  x = session.data.train[np.zeros(1, np.int64)][0]
  first, _ = measured(lambda: initial(contender.model, jax.random.key(0), x))
  trainer = session.trainer(contender.recipe, contender.sampler, 0)
  training, phases = measured(trainer.warm_up)
  judging = 0.0
  if contender.has_routers:
    batch = tuple(part[:32] for part in session.test)
    look = lambda: inspect(contender.model, session.task, trainer.variables, batch)
    judging = measured(look)[0] - min(measured(look)[0] for _ in range(2))
  step = min(measured(lambda: trainer.run(steps))[0] for _ in range(REPEATS)) / steps
  parts = ' + '.join(f'{phases.get(name, 0):.1f}' for name in PHASES.values())
  total = training + judging
  cells = [f'{first:.1f}', f'{training:.1f}', parts, f'{judging:.1f}', f'{total:.1f}']
  return [f'{config}: {contender.name}', *cells, f'{step * 1e3:.0f}']


def main(names):
  rows = []
  for name in dict.fromkeys(text.split(':')[0] for text in names):
    config = importlib.import_module(f'additive_jax.configs.{name}').get_config()
    chosen = {text.partition(':')[2] for text in names if text.split(':')[0] == name}
    check = lambda session: check_dense(session) and None
    with tempfile.TemporaryDirectory() as folder, open_session(config, folder, check=check) as run:
      for contender in networks(run):
        if chosen & {'', contender.name}:
          rows.append(row(name, contender, STEPS))
          print(*rows[-1], file=sys.stderr, flush=True)
  head = ['network', 'initial pool, CPU s', 'training, CPU s', 'trace + lower + compile, s']
  head += ['judging, CPU s', 'training + judging', 'step, CPU ms']
  timing.report(f'Compiling (target of training + judging: < {TARGET} s)', head, rows)


if __name__ == '__main__':
  jax.config.update('jax_enable_compilation_cache', False)
  main(sys.argv[1:] or CONFIGS)
