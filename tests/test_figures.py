"""The pictures that compare ways of training, and those of Exp 3 and Exp 5: what they draw."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer

from additive_jax.report import figures
from additive_jax.report.figures.style import PALETTE, depths, drawing

MEASURES = {'loss': 'test loss', 'accuracy': 'test accuracy'}


def variants(intervals=True):
  width = [0.1, 0.2, 0.05] if intervals else [np.nan] * 3
  return pd.DataFrame(
    {
      'variant': ['none', 'per_sample', 'conditional'],
      'loss': [1.0, 0.9, np.nan],
      'loss_ci95': width,
      'accuracy': [0.5, 0.6, 0.55],
      'accuracy_ci95': width,
    }
  )


def in_frame(figure):
  figure.canvas.draw()
  box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
  slack = 0.05  # inches: a text's box is larger than its ink
  assert min(box.x0, box.y0) > -slack
  assert box.x1 < width + slack
  assert box.y1 < height + slack


def texts(figure):
  return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


def dots(axes):
  """(place, colour) of the points with error bars, those without a value left out."""
  lines = [container.lines[0] for container in axes.containers]
  found = [(line.get_xdata()[0], to_hex(line.get_color())) for line in lines]
  return [dot for dot in found if np.isfinite(dot[0])]


@pytest.mark.parametrize('intervals', [True, False])
def test_scores_and_differences_give_a_variant_one_colour(intervals):
  frame = variants(intervals)
  scores = figures.scores(frame, MEASURES)
  assert [axes.get_title('left') for axes in scores.axes] == list(MEASURES.values())
  assert dots(scores.axes[0]) == [(1.0, PALETTE[0]), (0.9, PALETTE[1])]
  labels = [label.get_text() for label in scores.axes[0].get_yticklabels()]
  assert labels == ['none', 'per sample', 'conditional']
  differences = figures.differences(frame.iloc[1:], MEASURES)
  assert dots(differences.axes[1]) == [(0.6, PALETTE[1]), (0.55, PALETTE[2])]
  assert [0, 0] in [list(line.get_xdata()) for line in differences.axes[1].lines]
  in_frame(scores)
  in_frame(differences)


def bars(figure):
  """The ends of all intervals that are drawn, as bars, caps or bands."""
  containers = [
    c for axes in figure.axes for c in axes.containers if isinstance(c, ErrorbarContainer)
  ]
  parts = [part for c in containers for part in (*c.lines[1], *c.lines[2])]
  parts += [part for axes in figure.axes for part in axes.collections]
  found = []
  for part in parts:
    if isinstance(part, matplotlib.lines.Line2D):
      found += [place for place in part.get_xydata() if np.isfinite(place).all()]
    elif isinstance(part, matplotlib.collections.LineCollection):
      found += [line for line in part.get_segments() if len(line) and np.isfinite(line).all()]
    elif isinstance(part, matplotlib.collections.PolyCollection):
      found += [path for path in part.get_paths() if len(path.vertices)]
  return found


ARMS = pd.DataFrame(
  {
    'variant': ['dense', 'moe', 'softmax'],
    'family': ['dense', 'moe', 'softmax'],
    'label': ['101', '111', 'ensemble'],
    'structure': ['101', '111', '011'],
    'method': ['dense', 'variational', 'magnitude'],
    'gate': ['a/residual', 'b/residual', 'c/residual'],
    'effect': [0.1, -0.2, 0.3],
    'loss': [0.5, 0.4, 0.6],
    'shared_loss': [0.6, 0.5, 0.7],
    'accuracy': [0.9, 0.8, 0.7],
    'flops': [10.0, 20.0, 30.0],
    'params': [1, 2, 3],
    'saving': [0.0, 0.1, 0.2],
    'reached': [1, 1, 1],
  }
)
WITH_INTERVALS = {
  'scores': lambda frame: figures.scores(frame, MEASURES),
  'differences': lambda frame: figures.differences(frame, MEASURES),
  'comparison': figures.comparison,
  'budgets': figures.budgets,
  'ranking': figures.ranking,
  'ranking of many': lambda frame: figures.ranking(frame, top=2),
  'gate_effects': figures.gate_effects,
  'compression': lambda frame: figures.compression(frame, {'flops': 'FLOPs'}),
  'savings': lambda frame: figures.savings(curves().assign(variant='moe'), frame.iloc[1:2]),
}


@pytest.mark.parametrize('name', WITH_INTERVALS)
def test_one_seed_has_no_bar_of_any_width(name):
  keys = [f'{key}_ci95' for key in ('loss', 'shared_loss', 'accuracy', 'flops', 'saving')]
  draw = WITH_INTERVALS[name]
  assert bars(draw(ARMS.assign(**dict.fromkeys([*keys, 'ci95'], 0.01))))
  assert not bars(draw(ARMS.assign(**dict.fromkeys([*keys, 'ci95'], np.nan))))
  if name != 'budgets':  # which asks for a column of intervals
    assert not bars(draw(ARMS))


def test_one_arm_has_one_colour_in_all_pictures():
  colours = {'dense': '#111111', 'moe': '#222222', 'softmax': '#333333'}
  rows, others = ARMS, ARMS.iloc[1:]
  lines = pd.DataFrame({'tag': ['softmax', 'moe-seed0'], 'step': [1, 1], 'loss': [0.5, 0.4]})
  shares = {'softmax': np.full((2, 2), 0.5), 'moe': np.full((2, 2), 0.7)}
  counts = {'softmax': [3, 1], 'moe': [2]}
  tints = lambda figure: [tint for _, tint in dots(figure.axes[0])]
  of_lines = lambda figure: [to_hex(line.get_color()) for line in figure.axes[0].lines]
  found = {
    'scores': tints(figures.scores(rows, MEASURES, colours)),
    'differences': tints(figures.differences(others, MEASURES, colours)),
    'budgets': tints(figures.budgets(rows.assign(loss_ci95=np.nan), colours)),
    'curves': of_lines(figures.training_curves(lines, colours=colours)),
    'shares': [
      to_hex(axes.patches[0].get_facecolor())
      for axes in figures.compute_shares(shares, colours=colours).axes[::2]
    ],
    'ranks': of_lines(figures.rank_frequency(counts, colours=colours)),
    'loads': [
      to_hex(axes.lines[0].get_color())
      for axes in figures.utilisation({'softmax': [0.5, 1.5], 'moe': [1.0, 1.0]}, colours).axes
    ],
  }
  assert found == {
    'scores': ['#111111', '#222222', '#333333'],
    'differences': ['#222222', '#333333'],
    'budgets': ['#111111', '#222222', '#333333'],
    'curves': ['#333333', '#222222'],
    'shares': ['#333333', '#222222'],
    'ranks': ['#333333', '#222222'],
    'loads': ['#333333', '#222222'],
  }


def test_lines_of_one_arm_differ_in_their_dashes():
  lines = pd.DataFrame({'tag': ['a-seed0', 'a-seed1', 'b'], 'step': 1, 'loss': 0.5})
  drawn = figures.training_curves(lines, colours={'a': 'red', 'b': 'blue'}).axes[0].lines
  looks = [(line.get_color(), line.get_linestyle()) for line in drawn]
  assert looks == [('red', '-'), ('red', '--'), ('blue', '-')]


def test_sites_of_one_router_have_shades_of_its_colour():
  (axes,) = figures.utilisation(
    {'dna': [[0.5, 1.5]] * 2}, {'dna': '#0072b2'}, 'modules', 'step'
  ).axes
  assert [to_hex(line.get_color()) for line in axes.lines[:2]] == list(depths('#0072b2'))
  assert [text.get_text() for text in axes.get_legend().get_texts()] == ['step 0', 'step 1']
  assert axes.figure.get_supxlabel() == 'modules, most used first'


@pytest.mark.parametrize(
  ('tags', 'named'),
  [
    (('pool-seed0', 'choice'), ['pool', 'choice']),
    (('pool-seed7', 'other-seed7'), ['pool', 'other']),
    (('pool-seed0', 'pool-seed1'), ['pool, seed 0', 'pool, seed 1']),
  ],
)
def test_one_seed_is_not_named(tags, named):
  lines = pd.DataFrame({'tag': tags, 'step': [1, 3], 'loss': 0.5})
  (axes,) = figures.training_curves(lines).axes
  assert [text.get_text() for text in axes.get_legend().get_texts()] == named
  assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_few_ranks_are_named_by_whole_numbers():
  (axes,) = figures.rank_frequency({'dna': [50, 30, 20]}).axes
  axes.figure.draw_without_rendering()
  shown = [text.get_text() for text in axes.get_xticklabels(which='both') if text.get_text()]
  assert {'1', '2', '5'} <= set(shown) <= {'0', '1', '2', '5', '10', '20'}


def test_neither_interval_of_a_rank_hides_the_other():
  frame = ARMS.assign(loss_ci95=0.1, shared_loss_ci95=0.1)
  right = figures.ranking(frame).axes[-1]
  rows = [container.lines[0].get_ydata() for container in right.containers]
  assert np.abs(rows[0] - rows[1]) == pytest.approx(0.36)
  left = figures.ranking(frame, top=2).axes[0]  # where the curve of all is drawn
  assert {type(part).__name__ for part in left.collections} >= {'LineCollection'}


def test_distributions():
  sample = np.linspace(0.2, 0.6, 9)
  figure = figures.distributions({'a': sample, 'same': [0.3] * 4}, {'a': 0.6, 'same': 0.3})
  axes = figure.axes[0]
  assert len(axes.collections) == 1  # no violin of values that are all the same
  quartiles, median, ring, other = axes.lines
  assert quartiles.get_xdata() == pytest.approx([0.3, 0.5])
  assert median.get_xdata() == pytest.approx([0.4])
  assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (0.6, 0)
  assert (other.get_xdata()[0], other.get_ydata()[0]) == (0.3, 1)
  in_frame(figure)
  assert 'nothing to compare' in texts(figures.distributions({}, {}))


def test_keep_rates_are_drawn_once_where_they_stay():
  ramp = np.linspace(1.0, [0.9, 0.5], 9)
  constant = np.full((9, 2), 0.8)
  figure = figures.keep_rates({'ramp': ramp, 'constant': constant}, ['a/residual', 'b/residual'])
  left, right = figure.axes
  assert [len(axes.lines) for axes in (left, right)] == [5, 1]
  assert left.lines[2].get_ydata() == pytest.approx([0.95, 0.75])
  assert [label.get_text() for label in left.get_xticklabels()] == ['a', 'b']
  assert right.get_legend() is None
  in_frame(figure)


def curves():
  rows = [
    ('scratch', seed, 'large', step, 10.0 * step, 2.0 - 0.1 * step - 0.2 * seed)
    for seed in (0, 1)
    for step in (1, 2, 3)
  ]
  rows += [('clusters', 0, 'narrow', step, 1.0 * step, 2.1 - 0.1 * step) for step in (1, 2)]
  rows += [('clusters', 0, 'large', step, 2.0 + 10 * step, 1.6 - 0.1 * step) for step in (0, 1)]
  frame = pd.DataFrame(rows, columns=['variant', 'seed', 'phase', 'step', 'flops', 'loss'])
  return frame.assign(accuracy=1 - frame['loss'] / 4)


def test_curves_against_cost_mark_where_the_large_model_begins():
  figure = figures.spent(curves(), 'flops', 'FLOPs')
  loss, accuracy = figure.axes
  scratch, clusters, circle, level = loss.lines
  assert scratch.get_ydata() == pytest.approx([1.8, 1.7, 1.6])  # mean over the seeds
  assert clusters.get_xdata() == pytest.approx([1, 2, 2, 12])
  assert (circle.get_xdata()[0], circle.get_ydata()[0]) == (2.0, 1.6)
  assert level.get_ydata()[0] == pytest.approx(1.6)  # the mean of each seed's lowest
  assert accuracy.get_legend() is None
  assert accuracy.lines[-1].get_ydata()[0] == pytest.approx(0.6)
  in_frame(figure)
  assert 'nothing was trained' in texts(figures.spent(curves().iloc[:0], 'flops', 'FLOPs'))


def test_savings_in_percent_or_words():
  table = pd.DataFrame(
    {
      'variant': ['scratch', 'clusters', 'one_narrow', 'untrained'],
      'saving': [0.0, 0.25, np.nan, np.nan],
      'saving_ci95': [0.0, 0.05, np.nan, np.nan],
      'reached': [2, 2, 1, 0],
    }
  )
  names = ['scratch', 'clusters', 'one_narrow', 'untrained']
  each = [curves().iloc[:3].assign(variant=name) for name in names]
  figure = figures.savings(pd.concat(each), table)
  bars = figure.axes[1].patches
  assert [bar.get_width() for bar in bars] == [25.0]
  assert to_hex(bars[0].get_facecolor()) == PALETTE[1]  # as its line on the left
  assert {'reached in 1 of the seeds only', 'not reached'} <= set(texts(figure))
  in_frame(figure)
  empty = figures.savings(curves().iloc[:0], table.iloc[:1])
  assert {'nothing was trained', 'nothing to compare'} <= set(texts(empty))


def test_names_with_dollar_signs_are_no_formulas():
  with drawing(4, 3) as (figure, [[axes]]):
    axes.plot([1, 1000], label='$\\in$')
    axes.set(yscale='log', title='$\\gate$ and $b$')
    axes.set_xticks([0, 1], ['$\\frac$', 'a_$b'])
    axes.legend()
  figure.canvas.draw()
  formulas = {
    text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_parse_math()
  }
  assert not {'$\\in$', '$\\gate$ and $b$', '$\\frac$', 'a_$b'} & formulas
  assert any('10^{2}' in text for text in formulas)
