"""Searches under a budget, of a pretrained language model: the loss of what each finds on held-out
English and code, and what it took.

  python benchmarks/search.py --model=PATH [--folder=DIR] [--sets=3] [--rows=4]
      [--methods=greedy,bayesian]

Each method searches on each calibration set (rows of 128 tokens of English documents) for 10, 20
and 30 % of the body's parameters removed, in one search to 30 %. ShortGPT drops whole layers, so it
is compared at the size that it reaches. Evolution is given as many evaluations as the Bayesian
search took. Evaluations are journalled in the folder: a second start goes on.
"""

from __future__ import annotations

import pydoc_data.topics
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from absl import app, flags

import additive_jax as aj
from additive_jax import search
from additive_jax.batches import rows
from additive_jax.run.tasks import Task
from additive_jax.search.evaluator import PoolEvaluator
from additive_jax.search.probe import stream_changes

MODEL = flags.DEFINE_string(
  'model', None, 'A Hugging Face directory or a GGUF file.', required=True
)
FOLDER = flags.DEFINE_string('folder', 'search_journals', 'Where evaluations are kept.')
SETS = flags.DEFINE_integer('sets', 3, 'Calibration sets.')
ROWS = flags.DEFINE_integer('rows', 4, 'Rows of 128 tokens of each.')
METHODS = flags.DEFINE_list('methods', None, 'Some of the methods, by name; all of them if unset.')
REMOVED = (0.1, 0.2, 0.3)
TEST_ROWS = 16


def texts(tokenizer):
  """Returns calibration rows and test rows of English, and test rows of code."""
  topics = [text for _, text in sorted(pydoc_data.topics.topics.items())]
  english = aj.data.from_texts(topics, tokenizer, sequence_length=128, valid=0.3, test=0.3)
  code = aj.data.load('stdlib', tokenizer=tokenizer, sequence_length=128)
  take = lambda split, index: jax.tree.map(np.asarray, split[index])
  some = lambda split: take(split, np.arange(TEST_ROWS))
  order = np.random.default_rng(0).permutation(len(english.valid))[: SETS.value * ROWS.value]
  return take(english.valid, order), some(english.test), some(code.test)


def main(argv):
  """Prints the table of methods and sizes."""
  del argv
  loaded = aj.pretrained.load(MODEL.value)
  model, variables, task = loaded.model, jax.device_put(loaded.variables), Task('language')
  calibration, *tests = texts(loaded.tokenizer)
  space = aj.measure(model, rows(calibration[0], slice(1)))
  costs = search.Costs.of_space('params', space)
  body = costs.full - costs.fixed
  budget = search.Budget('params', 1 - REMOVED[-1], of='gates')
  Path(FOLDER.value).mkdir(exist_ok=True)
  found, lines = {}, []
  for number in range(SETS.value):
    batch = rows(calibration, slice(number * ROWS.value, (number + 1) * ROWS.value))
    evaluate = PoolEvaluator(model, variables, batch, task)
    common = {
      'budget': budget,
      'journal': f'{FOLDER.value}/set-{number}.jsonl',
      'identity': evaluate.identity(),
      'probe': lambda kind, x=batch[0]: stream_changes(model, variables, x, kind),
    }
    taken = None
    for name, method in methods().items():
      if METHODS.value and name not in METHODS.value:
        continue
      most = taken if name == 'evolution' else None
      try:
        path = search.find(evaluate, costs, method=method, evaluations=most, **common)
      except aj.UserError as error:
        print(f'{name}, set {number}: {error}', file=sys.stderr, flush=True)
        continue
      taken = path.evaluations if name == 'bayesian' else taken
      for share in REMOVED:
        best = path.at(costs.full - share * body)
        found[str(best)] = best
        lines.append([name, number, share, str(best), path.evaluations])
      print(name, number, round(path.evaluations, 1), file=sys.stderr, flush=True)
  bits = np.array([structure.bits for structure in found.values()] + [space.all_on().bits])
  frame = pd.DataFrame(lines, columns=['method', 'set', 'budget', 'structure', 'evaluations'])
  for name, test in zip(('English', 'code'), tests):
    losses = aj.evaluate_structures(model, variables, test, bits, task=task).loss
    of = dict(zip(found, losses))
    frame[name] = frame['structure'].map(of)
    print(f'all-on, {name}: perplexity {np.exp(losses[-1]):.2f}')
  sizes = dict(zip(found, costs.of(list(found.values()))))
  frame['removed'] = (costs.full - frame['structure'].map(sizes)) / body
  frame.to_csv(f'{FOLDER.value}/found.csv', index=False)
  table = frame.groupby(['budget', 'method'], sort=False).agg(
    removed=('removed', 'mean'),
    English=('English', lambda loss: np.exp(loss.mean())),
    English_spread=('English', lambda loss: np.exp(loss).std(ddof=1)),
    code=('code', lambda loss: np.exp(loss.mean())),
    evaluations=('evaluations', 'mean'),
  )
  print(table.round(3).to_string())


def methods():
  """Returns the searches by name; the Bayesian one before evolution, which gets what it took."""
  return {
    'bayesian': search.Bayesian(),
    # Few rows have no sixteenth; 26 generations of 12 evaluations.
    'evolution': search.Evolution(generations=23, offspring=16, shares=(0.5,), keep=(4,), levels=3),
    'lazy_greedy': search.LazyGreedy(),
    'lazy_greedy of 16': search.LazyGreedy(fresh=16),
    'beam': search.Beam(width=2, fresh=8),
    'surrogate': search.Surrogate(),
    'greedy': search.Greedy(),
    'greedy by loss': search.Greedy(by_cost=False),
    'leave_one_out': search.LeaveOneOut(),
    'cosine': search.Cosine(),
    'cosine of layers': search.Cosine(sites='layer'),
    'random': search.Random(count=64),
  }


if __name__ == '__main__':
  app.run(main)
