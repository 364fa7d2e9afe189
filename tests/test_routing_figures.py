"""The pictures of routers and of DNA's modules: what they draw, and that awkward data does not stop
them.
"""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle

from additive_jax.errors import UserError
from additive_jax.report import figures, paths, power_law
from additive_jax.report.figures.style import PALETTE, VERMILION
from additive_jax.report.page import Page, picture

NAMES = ['attention 0', 'attention 1', 'mlp 0', 'block 0', 'identity 0']
IDENTITY = np.array([0, 0, 0, 0, 1], bool)


def draw(examples=6, tokens=16, steps=3, k=2, modules=5):
  rng = np.random.default_rng(0)
  keys = rng.gumbel(size=(examples, tokens, steps, modules))
  return np.argsort(-keys, axis=-1)[..., :k]


def budget_frame():
  rows = [
    ('dense_8', 'dense', 1.41, 0.012, 4e6, 8e5),
    ('dense_4', 'dense', 1.52, 0.010, 2e6, 4e5),
    ('marginal', 'mixture', 1.42, np.nan, 3.3e6, 6e5),
    ('softmax', 'mixture', 1.43, 0.010, 3.1e6, 6e5),
    ('dna', 'dna', 1.39, 0.015, 3.0e6, 9e5),
    ('diverged', 'dna', np.nan, np.nan, 3.0e6, 9e5),
  ]
  return pd.DataFrame(rows, columns=['variant', 'family', 'loss', 'loss_ci95', 'flops', 'params'])


def curves(tags=3):
  steps = np.arange(50)
  found = [pd.DataFrame({'step': steps, 'tag': f'site {i}', 'value': 0.5 + i}) for i in range(tags)]
  return pd.concat(found)


def all_pictures(chosen, names, identity, grid):
  count, steps = len(names), chosen.shape[2]
  codes, classes = paths.path_codes(chosen), np.zeros(chosen.shape[:2], int)
  share = paths.compute_share(chosen, identity)
  loads = [paths.utilisation(chosen[:, :, step], count) for step in range(steps)]
  law = power_law.fit_power_law(codes, resamples=5, min_count=1)
  return [
    figures.utilisation({'dna': np.reshape(loads, (steps, count))}),
    figures.rank_frequency({'dna': paths.rank_frequency(codes)}, {'dna': law}),
    figures.compute_shares({'dna': share}, {'dna': 0.7}),
    figures.text_paths(np.full(chosen.shape[1], 65), chosen[0], names, identity),
    figures.image_paths(np.ones((2, 8, 8)), chosen[:2], grid, names, identity),
    figures.flow(paths.flows(chosen, count), names),
    figures.specialisation(
      paths.specialisation(chosen, classes, count, 2).lift, names, ['digit', 'other']
    ),
    figures.reuse(paths.reuse(chosen, count), names),
    figures.information(*paths.information(chosen, classes, count, 2)),
  ]


def in_frame(figure):
  assert isinstance(figure, Figure)
  box = figure.get_tightbbox()
  width, height = figure.get_size_inches()
  slack = 0.06  # inches: a text's box is larger than its ink
  sides = {'left': -box.x0, 'bottom': -box.y0, 'right': box.x1 - width, 'top': box.y1 - height}
  assert {side: over for side, over in sides.items() if over > slack} == {}


def texts(figure):
  found = figure.findobj(matplotlib.text.Text)
  return [text.get_text() for text in found if text.get_visible() and text.get_text()]


def legend(figure, axes=None):
  found = (axes or figure.axes[-1]).get_legend()
  return [text.get_text() for text in found.get_texts()]


MANY = [*(f'attention {i}' for i in range(8)), *(f'mlp {i}' for i in range(8)), 'identity 0']


@pytest.mark.parametrize(
  ('chosen', 'names', 'grid'),
  [
    (draw(), NAMES, (4, 4)),
    pytest.param(draw(k=1, steps=1), NAMES, (2, 8), marks=pytest.mark.thorough),
    pytest.param(np.zeros((2, 4, 2, 1), int), ['attention 0'], (2, 2), marks=pytest.mark.slow),
    pytest.param(draw(modules=17, steps=4, tokens=36), MANY, (6, 6), marks=pytest.mark.thorough),
  ],
  ids=['usual', 'one step', 'one module', 'many modules'],
)
def test_every_picture_is_drawn_inside_its_frame_and_in_a_report(chosen, names, grid):
  before = dict(matplotlib.rcParams)
  identity = [name.startswith('identity') for name in names]
  pieces = []
  for figure in all_pictures(chosen, names, identity, grid):
    in_frame(figure)
    pieces.append(picture(figure, 'a picture'))
  assert Page('Routing', *pieces).html().count('<figure>') == 9
  assert dict(matplotlib.rcParams) == before


def test_pictures_of_nothing_say_so():
  none, empty = np.zeros((0, 16, 3, 2), int), np.zeros((0, 3, 2), int)
  flows = paths.flows(none, 5)
  frame = budget_frame().iloc[-1:]
  unlogged = curves(1).assign(value=np.nan)
  said = {
    'nothing to compare': [
      figures.utilisation({}),
      figures.compute_shares({}),
      figures.specialisation(np.zeros((0, 0)), [], []),
    ],
    'nothing was chosen': [
      figures.utilisation({'dna': np.full((2, 5), np.nan)}),
      figures.rank_frequency({'dna': []}),
      figures.information([np.nan, np.nan], [np.nan, np.nan]),
      figures.information([], []),
    ],
    'not measured': [figures.compute_shares({'dna': np.zeros((0, 4))})],
    'nothing was logged': [figures.training_curves(unlogged, 'value', 1)],
    'no model has a finite loss': [figures.budgets(frame)],
    'no text': [figures.text_paths(np.zeros(0, int), empty, NAMES, IDENTITY)],
    'no images': [figures.image_paths(np.zeros((0, 8, 8)), none, (4, 4), NAMES, IDENTITY)],
    'nothing flows: fewer than two steps, or no tokens': [
      figures.flow(flows, NAMES),
      figures.flow(flows[:0], NAMES),
    ],
    'no tokens': [figures.reuse(np.zeros((5, 4)), NAMES)],
  }
  for message, pictures in said.items():
    for figure in pictures:
      assert message in texts(figure)
      in_frame(figure)
      picture(figure, 'nothing')


def test_utilisation_counts_and_marks_the_dead():
  load = np.array([[0.0, 2.5, 1.0, 0.5], [0.0, 0.0, 1.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
  figure = figures.utilisation({'softmax': load, 'random': np.ones(4), 'moe': load * np.nan})
  axes = figure.axes[0]
  assert axes.get_title('right') == '3 of 12 dead'
  crosses = [line for line in axes.lines if line.get_marker() == 'x']
  assert [line.get_xdata().tolist() for line in crosses] == [[4], [3, 4]]
  assert all(to_hex(line.get_color()) == VERMILION for line in crosses)
  first = axes.lines[0]
  assert first.get_xdata().tolist() == [1, 2, 3]
  assert first.get_ydata().tolist() == [2.5, 1.0, 0.5]
  assert [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == '--'] == [1]
  assert legend(figure, axes) == ['site 0', 'site 2']
  assert figure.axes[1].get_title('right') == ''
  assert axes.get_ylim() == figure.axes[1].get_ylim()
  assert 3.0 < axes.get_ylim()[1] < 4.0


def test_rank_frequency_shows_the_fit():
  counts = (1e6 / np.arange(1, 1001) ** 1.5).astype(int)
  law = power_law.PowerLaw(1.5, 1.4, 1.625, 1000, 200, 0.5)
  few = power_law.PowerLaw(np.nan, np.nan, np.nan, 3, 1)
  figure = figures.rank_frequency(
    {'dna': counts, 'few': [12, 3, 1], 'plain': [5]}, {'dna': law, 'few': few}
  )
  axes = figure.axes[0]
  assert (axes.get_xscale(), axes.get_yscale()) == ('log', 'log')
  assert legend(figure) == [
    'dna: 1,000 paths\ns = 1.50 [1.40, 1.62]',
    'few: 3 paths\ntoo few tokens on each path for a fit',
    'plain: 1 path',
  ]
  fit, *points = axes.lines
  assert fit.get_xdata().tolist() == [1, 200]
  slope = np.diff(np.log(fit.get_ydata())) / np.diff(np.log(fit.get_xdata()))
  assert slope == pytest.approx(-1.5)
  # These counts are the law itself, to whole tokens: the line goes through the points.
  assert fit.get_ydata()[0] == pytest.approx(counts[0] / counts.sum(), rel=1e-3)
  assert len(points) == 3
  assert points[0].get_xdata()[[0, -1]].tolist() == [1, 1000]
  assert 'dashed' not in str(texts(figures.rank_frequency({'dna': counts})))


def test_a_law_that_does_not_fit_is_said_and_not_drawn():
  steps = np.repeat(np.arange(40), np.where(np.arange(40) < 20, 200, 20))  # two levels, no law
  law = power_law.fit_power_law(np.random.default_rng(0).permutation(steps).reshape(-1, 40))
  assert law.p_value < 0.1
  assert not law.fits
  figure = figures.rank_frequency({'dna': paths.rank_frequency(steps)}, {'dna': law})
  assert legend(figure) == [f'dna: 40 paths\nno power law fits (p = {law.p_value:.2f})']
  assert len(figure.axes[0].lines) == 1
  assert np.isnan(law.figures()['path_exponent'])


def test_even_paths_are_a_flat_line():
  law = power_law.fit_power_law(np.repeat(np.arange(20), 12)[:, None])
  figure = figures.rank_frequency({'dna': np.full(20, 12)}, {'dna': law})
  assert legend(figure)[0].startswith('dna: 20 paths\ns = 0.00 [')
  low, high = figure.axes[0].get_ylim()
  assert low < 0.05 < high
  assert high / low >= 10 - 1e-9


def test_budgets_join_the_dense_and_leave_out_what_diverged():
  figure = figures.budgets(budget_frame())
  left, right = figure.axes
  line = left.lines[0]
  assert line.get_xdata().tolist() == [2.0, 4.0]
  assert line.get_ydata().tolist() == [1.52, 1.41]
  assert right.lines[0].get_xdata().tolist() == pytest.approx([400.0, 800.0])
  assert len(left.containers) == len(right.containers) == 5
  assert legend(figure, right) == ['dense 8', 'dense 4', 'marginal', 'softmax', 'dna']
  assert left.get_xlabel() == 'active FLOPs per example (×10⁶)'
  assert right.get_xlabel() == 'parameters (×10³)'
  assert left.get_ylim() == right.get_ylim()
  points = [container.lines[0] for container in left.containers]
  colours = [point.get_color() for point in points]
  assert colours[2] == colours[3] == PALETTE[0]
  assert colours[4] == PALETTE[1]
  assert points[2].get_marker() != points[3].get_marker()
  in_frame(figure)
  in_frame(figures.budgets(budget_frame().iloc[2:4]))


def test_curves_have_a_target():
  figure = figures.training_curves(curves().rename(columns={'value': 'MaxVio'}), 'MaxVio', 4.0)
  axes = figure.axes[0]
  assert len(axes.lines) == 4
  assert axes.lines[-1].get_linestyle() == '--'
  assert axes.get_ylim()[1] > 4.0
  assert axes.get_ylabel() == 'MaxVio'
  assert legend(figure) == ['site 0', 'site 1', 'site 2', 'target']
  in_frame(figure)
  many = figures.training_curves(curves(14), 'value', 4.0)
  assert many.axes[0].get_title('left') == '14 runs, from site 0 (dark) to site 13 (light)'
  assert len(many.axes[0].lines) == 15


def test_compute_shows_means_and_targets():
  share = np.array([[0.25, 0.5], [0.5, 1.0]])
  figure = figures.compute_shares({'a': share, 'b': share[:0]}, {'a': 0.7})
  tokens, examples, *unmeasured = figure.axes
  bars = [bar for bar in tokens.patches if isinstance(bar, Rectangle)]
  middles = [bar.get_x() + bar.get_width() / 2 for bar in bars]
  assert middles == pytest.approx([0.25, 0.5, 1.0])
  assert [bar.get_height() for bar in bars] == pytest.approx([0.25, 0.5, 0.25])
  assert legend(figure, tokens) == legend(figure, examples)
  assert legend(figure, tokens) == ['mean 0.562', 'target 0.700']
  assert [axes.texts[0].get_text() for axes in unmeasured] == ['not measured'] * 2
  low, high = tokens.get_xlim()
  assert low < 0
  assert high > 1
  fine = figures.compute_shares({'a': np.random.default_rng(0).random((50, 40))})
  assert sum(bar.get_height() for bar in fine.axes[0].patches) == pytest.approx(1)


def test_module_colours_have_a_hue_for_each_kind():
  colours = figures.module_colours(NAMES)
  assert colours.shape == (5, 4)
  red, green, blue, _ = colours.T
  assert (blue[:2] > red[:2]).all()
  assert red[2] > blue[2]
  assert green[3] > max(red[3], blue[3])
  assert np.ptp(colours[4, :3]) < 0.01
  assert len({to_hex(colour) for colour in colours}) == 5
  many = figures.module_colours(MANY)
  assert len({to_hex(colour) for colour in many}) == len(MANY)
  assert figures.module_colours([]).shape == (0, 4)


def test_text_paths_show_every_choice():
  tokens = np.frombuffer(b'a $\n\t$\x07\xff', np.uint8)
  chosen = draw(tokens=8, examples=1)[0]
  figure = figures.text_paths(tokens, chosen, NAMES, IDENTITY)
  axes = figure.axes[0]
  assert [label.get_text() for label in axes.get_xticklabels()] == list('a␣$↵⇥$··')
  assert [label.get_text() for label in axes.get_yticklabels()] == [
    'step 1',
    'step 2',
    'step 3',
    'compute, of 6',
  ]
  assert axes.get_ylim()[1] == 0
  assert len(axes.texts) == chosen.size + 8
  counts = [text.get_text() for text in axes.texts[-8:]]
  assert counts == [str((token != 4).sum()) for token in chosen]  # module 4 is the identity
  colours = figures.module_colours(NAMES)
  cells = axes.collections[0].get_facecolors().reshape(6, 8, 4)
  np.testing.assert_allclose(cells[2, 5], colours[chosen[5, 1, 0]])
  np.testing.assert_allclose(cells[5, 0], colours[chosen[0, 2, 1]])
  number = next(t for t in axes.texts if t.get_position() == (5.5, 2.5))
  assert number.get_text() == NAMES[chosen[5, 1, 0]][-1]
  assert [text.get_text() for text in figure.legends[0].get_texts()] == NAMES


def test_long_texts_are_wrapped_and_cut():
  chosen = draw(tokens=200, examples=1)[0]
  figure = figures.text_paths(np.arange(200) % 26 + 97, chosen, NAMES, IDENTITY)
  assert len(figure.axes) == 3
  assert 'the first 144 of 200 bytes' in texts(figure)
  assert [axes.get_xlim() for axes in figure.axes] == [(0, 48)] * 3
  second = [label.get_text() for label in figure.axes[1].get_xticklabels()]
  assert second[0] == chr(97 + 48 % 26)
  in_frame(figure)
  short = figures.text_paths(np.full(60, 97), chosen[:60], NAMES, IDENTITY)
  assert [len(axes.get_xticks()) for axes in short.axes] == [48, 12]
  assert 'the first' not in str(texts(short))


def test_image_paths_lay_compute_over_the_image():
  chosen = draw(examples=2, tokens=6)
  images = np.random.default_rng(0).normal(size=(2, 8, 12, 3))
  figure = figures.image_paths(images, chosen, (2, 3), NAMES, IDENTITY)
  assert len(figure.axes) == 2 * (1 + 3 + 1) + 1  # and the colour bar
  titles = [axes.get_title('left') for axes in figure.axes[:5]]
  assert titles == ['image', 'step 1', 'step 2', 'step 3', 'compute']
  shown, overlay = figure.axes[4].images
  assert shown.get_array().shape == (8, 12, 3)
  expected = paths.compute_share(chosen, IDENTITY)[0].reshape(2, 3)
  np.testing.assert_allclose(overlay.get_array(), expected)
  cells = figure.axes[5 + 2].collections[0].get_facecolors().reshape(2, 2, 3, 4)
  colours = figures.module_colours(NAMES)
  # Second image, second step, patch 4 is in the second row and column; its second choice below.
  np.testing.assert_allclose(cells[1, 1, 1], colours[chosen[1, 4, 1, 1]])
  in_frame(figure)
  grey = figures.image_paths(images[..., :1], chosen, (2, 3), NAMES, IDENTITY)
  assert grey.axes[0].images[0].get_array().shape == (8, 12)


def test_flow_draws_lines_by_share_and_discs_by_load():
  flows = np.zeros((2, 3, 3))
  flows[0, 0, 1], flows[0, 0, 2], flows[1, 1, 1], flows[1, 2, 1] = 0.75, 0.25, 0.75, 0.25
  figure = figures.flow(flows, NAMES[:3])
  axes = figure.axes[0]
  lines = [patch for patch in axes.patches if isinstance(patch, PathPatch)]
  widths = [line.get_linewidth() for line in lines]
  assert np.array(widths) / widths[0] == pytest.approx([1, 1 / 3, 1, 1 / 3])
  assert lines[0].get_path().vertices[[0, -1]].tolist() == [[0, 0], [1, 1]]
  discs = {tuple(disc.get_offsets()[0]): disc.get_sizes()[0] for disc in axes.collections}
  assert set(discs) == {(0, 0), (1, 1), (1, 2), (2, 1)}
  assert discs[1, 1] / discs[0, 0] == pytest.approx(0.75)
  assert discs[2, 1] == pytest.approx(discs[0, 0])
  assert sum(line.get_marker() == 'x' for line in axes.lines) == 5  # places that nothing visits
  assert [label.get_text() for label in axes.get_yticklabels()] == NAMES[:3]


def test_specialisation_centres_on_one_and_names_the_dead():
  lift = np.array([[2.0, 0.5, np.nan], [np.nan] * 3, [0.0, 12.3, np.nan]])
  figure = figures.specialisation(lift, NAMES[:3], ['digit', 'space', 'other'])
  axes = figure.axes[0]
  said = [text.get_text() for text in axes.texts]
  assert sorted(said) == sorted(['2.00', '0.50', '0.00', '12', 'never chosen', 'no tokens'])
  mesh = axes.collections[0]
  assert mesh.norm.vmin == -mesh.norm.vmax
  assert mesh.norm.vmax == pytest.approx(np.log2(12.3))
  array = mesh.get_array().reshape(3, 3)
  assert array[0, :2].tolist() == [1, -1]
  assert array[2, 0] == mesh.norm.vmin
  assert array.mask[1].all()
  squares = axes.collections[1].get_facecolors()
  np.testing.assert_allclose(squares, figures.module_colours(NAMES[:3]))
  ticks = [label.get_text() for label in figure.axes[1].get_yticklabels()]
  assert ticks == ['0.125', '0.25', '0.5', '1', '2', '4', '8']


def test_reuse_stacks_shares():
  figure = figures.reuse([[6, 3, 1], [10, 0, 0]], NAMES[:2])
  axes = figure.axes[0]
  assert legend(figure) == ['not used', 'once', '2 times']
  widths = np.array([[bar.get_width() for bar in bars] for bars in axes.containers])
  np.testing.assert_allclose(widths, [[0.6, 1], [0.3, 0], [0.1, 0]])
  assert [bar.get_x() for bar in axes.containers[2]] == pytest.approx([0.9, 1.0])
  assert axes.get_xlim() == (0, 1)


def test_information_shows_both():
  figure = figures.information([0.3, np.nan, 0.1], [0.02, np.nan, 0.01])
  axes = figure.axes[0]
  assert [bar.get_height() for bar in axes.containers[0]] == [0.3, 0, 0.1]
  assert axes.lines[0].get_ydata().tolist() == pytest.approx([0.02, np.nan, 0.01], nan_ok=True)
  assert legend(figure) == ['as it is', 'classes shuffled']
  assert axes.get_ylim()[0] == 0
  assert to_rgba(axes.lines[0].get_color()) != axes.containers[0][0].get_facecolor()


def test_bad_input():
  with pytest.raises(UserError, match=r"column 'params'.*'variant'"):
    figures.budgets(budget_frame().drop(columns='params'))
  with pytest.raises(UserError, match="column 'load'"):
    figures.training_curves(pd.DataFrame({'step': [1], 'tag': ['a']}), 'load')
  with pytest.raises(UserError, match=r'tokens \[T\].*\(3,\), \(16, 3, 2\)'):
    figures.text_paths(np.zeros(3, int), draw()[0], NAMES, IDENTITY)
  with pytest.raises(UserError, match=r'1 or 3 channels, got \(6, 8, 8, 2\)'):
    figures.image_paths(np.zeros((6, 8, 8, 2)), draw(), (4, 4), NAMES, IDENTITY)
  with pytest.raises(UserError, match=r'choices \[6, 3 × 5, S, k\], got \(6, 16, 3, 2\)'):
    figures.image_paths(np.zeros((6, 8, 8)), draw(), (3, 5), NAMES, IDENTITY)
  with pytest.raises(UserError, match=r'flows \[S−1, 5, 5\], got \(2, 4, 4\)'):
    figures.flow(np.zeros((2, 4, 4)), NAMES)
  with pytest.raises(UserError, match=r'lift \[5, 2\], got \(4, 2\)'):
    figures.specialisation(np.ones((4, 2)), NAMES, ['a', 'b'])
  with pytest.raises(UserError, match=r'counts \[5, S \+ 1\], got \(4, 4\)'):
    figures.reuse(np.ones((4, 4)), NAMES)
