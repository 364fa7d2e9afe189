"""Draws the README's pictures from finished runs of Exp 1, Exp 2 and Exp 5.

python docs/pictures.py RUN_OF_EXP1 RUN_OF_EXP2 RUN_OF_EXP5 RUN_OF_EXP5_LM
"""

import sys
from pathlib import Path

from additive_jax.files.rundir import RunDir
from additive_jax.report import figures

IMAGES = Path(__file__).parent / 'images'
SPLIT = 'validation'  # on which a sweep ranks


def main(sweep_path, cotrain_path, *booster_paths):
  sweep, cotrain = RunDir(sweep_path), RunDir(cotrain_path)
  table, names = sweep.read_table('structures.csv'), sweep.read_json('config.json')['gates']
  top = table.head(8)
  labels = [f'{loss:.3f}' for loss in top['loss']]
  pictures = {
    'structures': figures.structures(top['structure'].tolist(), names, labels),
    'effects': figures.gate_effects(sweep.read_table('effects.csv'), SPLIT),
    'agreement': figures.agreement(table['shared_loss'], table['loss']),
    'cotrain': figures.comparison(cotrain.read_table('comparison.csv')),
  }
  for name, path in zip(('booster', 'booster_lm'), map(RunDir, booster_paths)):
    tables = (path.read_table(f'{table}.csv') for table in ('curves', 'variants'))
    pictures[name] = figures.savings(*tables)
  for name, figure in pictures.items():
    figure.savefig(IMAGES / f'{name}.png', dpi=110, metadata={'Software': None})


if __name__ == '__main__':
  if len(sys.argv) != 5:
    sys.exit(f'usage: {sys.argv[0]} RUN_OF_EXP1 RUN_OF_EXP2 RUN_OF_EXP5 RUN_OF_EXP5_LM')
  main(*sys.argv[1:])
