"""The pictures, drawn for easy and awkward data, and the page that holds them."""

import base64
import functools
import hashlib
import html.parser
import re
import xml.etree.ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from additive_jax.errors import UserError
from additive_jax.report import figures, rankings, statistics
from additive_jax.report.figures.marks import scaled
from additive_jax.report.page import Page, details, picture, section, table, text, tiles
from additive_jax.report.wording import counted, format_value, short_names, with_margin


def sweep(num_gates, size=None, seeds=3, gaps=False):
  """A made-up sweep: a structures frame, its bits, its losses by seed, and gate names."""
  rng = np.random.default_rng(num_gates)
  size = size or 2**num_gates
  bits = (np.arange(size)[:, None] >> np.arange(num_gates)) & 1
  values = 0.4 + bits @ rng.normal(-0.02, 0.02, num_gates) + rng.normal(0, 0.01, (seeds, size))
  shared = values.mean(axis=0) + 0.05
  if gaps:
    values[:, 0], values[0, -1], shared[size // 2] = np.nan, np.inf, np.nan
  mean, half_width = statistics.mean_and_ci(values)
  table = pd.DataFrame(
    {
      'structure': [''.join(map(str, row)) for row in bits],
      'loss': mean,
      'loss_ci95': half_width,
      'flops': 1000 + bits @ rng.integers(100, 900, num_gates),
      'shared_loss': shared,
    }
  )
  return table, bits, values, [f'block_{i:02d}/mlp/residual' for i in range(num_gates)]


def test_columns_of_a_table_may_be_numbers():
  content = table(pd.DataFrame({0: [0.5], 1: [2.0]}), 'Two.').content
  assert [column['name'] for column in content['columns']] == ['0', '1']
  assert content['rows'] == [['0.5000', '2']]


def test_a_table_says_a_number_with_its_interval():
  frame = pd.DataFrame(
    {
      'variant': ['per_sample', 'none'],
      'training_flops': [1200.0, 34567.0],
      'loss': [1.25, 1.5],
      'loss_ci95': [0.125, np.nan],
      'share': [0.5, 2.0],
      'lost': [np.nan, np.nan],
      'alone_ci95': [np.nan, np.nan],
    }
  )
  content = table(frame, 'Two.').content
  assert [column['name'] for column in content['columns']] == [
    'variant',
    'training FLOPs',
    'loss',
    'share',
    'lost',
  ]
  assert [row[:4] for row in content['rows']] == [
    ['per sample', '1,200', '1.250 ± 0.12', '0.5000'],
    ['none', '34,567', '1.500', '2.000'],
  ]
  assert [row[4] for row in content['rows']] == ['–', '–']


def pictures(table, bits, values, names):
  best = table.dropna().sort_values('loss').head(4)
  chosen = list(best['structure'])
  effects, matrix = statistics.effects_from_sample(bits, table['loss'])
  curves = pd.DataFrame(
    {
      'step': np.tile(np.arange(1000), len(chosen)),
      'tag': np.repeat(chosen, 1000),
      'loss': np.tile(np.exp(-np.arange(1000) / 300), len(chosen)),
    }
  )
  sides = pd.DataFrame(
    {
      'label': [*chosen, 'ensemble'] * 2,
      'variant': np.repeat(['alone', 'co-trained'], len(chosen) + 1),
      'loss': np.linspace(0.2, 0.4, 2 * len(chosen) + 2),
    }
  )
  return [
    figures.ranking(table),
    figures.ranking(table[['structure', 'loss']], top=3),
    figures.pareto(table),
    figures.gate_effects(statistics.effect_table(bits, values, names)),
    figures.gate_effects(pd.DataFrame({'gate': names, 'effect': effects})),
    figures.interaction_heatmap(matrix, names),
    figures.structures(chosen, names, [f'{loss:.4f}' for loss in best['loss']]),
    figures.training_curves(curves),
    figures.cosines(np.eye(len(chosen)), chosen),
    figures.agreement(table['shared_loss'], table['loss']),
    figures.comparison(sides),
    figures.comparison(sides.assign(loss_ci95=0.01)),
  ]


def drawn_text(figure):
  texts = [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_visible()]
  return [text for text in texts if text]


@pytest.mark.slow
@pytest.mark.parametrize(
  'case',
  [
    {'num_gates': 1},
    {'num_gates': 1, 'size': 1, 'seeds': 1},
    pytest.param({'num_gates': 5}, marks=pytest.mark.thorough),
    {'num_gates': 5, 'gaps': True},
    pytest.param({'num_gates': 20, 'size': 300, 'gaps': True}, marks=pytest.mark.thorough),
    pytest.param({'num_gates': 12}, marks=pytest.mark.thorough),
  ],
  ids=str,
)
def test_every_picture_is_drawn_inside_its_frame(case):
  before = dict(matplotlib.rcParams)
  for figure in pictures(*sweep(**case)):
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    slack = 0.05  # inches: a text's box is larger than its ink
    assert box.x0 > -slack
    assert box.y0 > -slack
    assert box.x1 < width + slack
    assert box.y1 < height + slack
  assert dict(matplotlib.rcParams) == before


def test_pictures_of_nothing_say_so():
  nothing = pd.DataFrame({'structure': ['1'], 'loss': [np.nan], 'flops': [1.0]})
  assert 'no structure has a finite loss' in drawn_text(figures.ranking(nothing))
  assert 'no structure has a finite loss' in drawn_text(figures.pareto(nothing))
  assert 'no structure has both losses' in drawn_text(figures.agreement([np.nan], [1.0]))
  empty = pd.DataFrame({'step': [], 'tag': [], 'loss': [], 'label': [], 'variant': []})
  assert 'nothing was logged' in drawn_text(figures.training_curves(empty))
  assert 'nothing to compare' in drawn_text(figures.comparison(empty))


def test_what_the_pictures_say():
  table, _, _, names = sweep(3)
  best = table.loc[table['loss'].idxmin(), 'structure']
  assert best in drawn_text(figures.pareto(table))
  ranking = figures.ranking(table, top=5)
  labels = [label.get_text() for label in ranking.axes[-1].get_yticklabels()]
  assert labels == list(table.sort_values('loss')['structure'].head(5))
  rows = figures.structures(['101', '010'], names, ['0.1', '0.2'])
  on_discs, _, off_rings, _ = rows.axes[0].collections
  assert on_discs.get_offsets().tolist() == [[0, 0], [2, 0], [1, 1]]
  assert off_rings.get_offsets().tolist() == [[1, 0], [0, 1], [2, 1]]
  assert {'block_00', 'block_01', 'block_02', '0.1', '0.2'} <= set(drawn_text(rows))
  tau = rankings.kendall_tau(table['shared_loss'], table['loss'])
  agreement = figures.agreement(table['shared_loss'], table['loss'])
  assert f'Kendall τ = {tau:.2f}' in drawn_text(agreement)
  heat = figures.interaction_heatmap([[9, 0.012], [0.012, 9]], ['a', 'b'])
  assert drawn_text(heat).count('+12.0') == 2
  mesh = heat.axes[0].collections[0]
  assert (mesh.norm.vmin, mesh.norm.vmax) == (-12.0, 12.0)


def test_a_diverged_structure_does_not_flatten_the_rest():
  table, *_ = sweep(5)
  table.loc[3, 'loss'] = 1e4
  for figure in (figures.ranking(table), figures.pareto(table)):
    assert figure.axes[0].get_ylim()[1] < 1.0
    assert any('1 not shown' in text for text in drawn_text(figure))


def test_many_and_long_curves():
  steps = np.arange(5000)
  frame = pd.concat([pd.DataFrame({'step': steps, 'tag': i, 'loss': 1.0 + i}) for i in range(15)])
  axes = figures.training_curves(frame).axes[0]
  assert len(axes.lines) == 15
  assert axes.get_legend() is None
  assert all(len(line.get_xdata()) == 300 for line in axes.lines)
  assert axes.lines[2].get_ydata() == pytest.approx(3.0)


def test_bad_input_to_pictures():
  with pytest.raises(UserError, match=r"column 'flops'.*'structure'"):
    figures.pareto(pd.DataFrame({'structure': ['1'], 'loss': [1.0]}))
  with pytest.raises(UserError, match="2 characters 0 or 1, got '1x'"):
    figures.structures(['1x'], ['a', 'b'], [''])
  with pytest.raises(UserError, match='1 labels given for 2 structures'):
    figures.structures(['1', '0'], ['a'], [''])
  with pytest.raises(UserError, match=r'matrix \[3, 3\] for 3 labels, got \(2, 2\)'):
    figures.cosines(np.eye(2), ['a', 'b', 'c'])


def test_labels():
  assert short_names(['block_00/mlp/residual', 'block_01/mlp/residual']) == ['block_00', 'block_01']
  assert short_names(['a/mlp/x', 'a/attention/x']) == ['a/mlp', 'a/attention']
  assert short_names(['only/one/gate']) == ['only']
  assert short_names(['a', 'b/a']) == ['a', 'b/a']
  powers = [scaled([x])[1] for x in (0.012, 1.0, 999.0, 1e3, 0.0, np.nan)]
  assert powers == [' (×10⁻³)', '', '', ' (×10³)', '', '']


@pytest.mark.parametrize(
  ('value', 'expected'),
  [
    (0.123456, '0.1235'),
    (0.5, '0.5000'),
    (123456.0, '1.235×10⁵'),
    (-1234.4, '−1,234'),
    (2e-7, '2.000×10⁻⁷'),
    (0.0, '0.000'),
    (-0.0, '0.000'),
    (4096, '4,096'),
    (np.int64(-7), '−7'),
    (np.float32(0.25), '0.2500'),
    (np.nan, '–'),
    (None, '–'),
    (-np.inf, '−∞'),
    (True, 'yes'),
    (np.bool_(False), 'no'),
    ('0110', '0110'),
  ],
)
def test_format_value(value, expected):
  assert format_value(value) == expected


class Parsed(html.parser.HTMLParser):
  """Ids, references and open elements of a page."""

  VOID = ('meta', 'img', 'br')

  def __init__(self, text):
    super().__init__()
    self.ids, self.references, self.open, self.tags = [], [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.handle_startendtag(tag, attrs)
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    for name, value in attrs:
      if name == 'id':
        self.ids.append(value)
      if name in ('src', 'href', 'xlink:href'):
        self.references.append(value)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


@functools.cache
def full_report(**case):
  structures, bits, values, names = sweep(**case)
  return Page(
    'A sweep',
    tiles({'best loss': 0.123456, 'structures': len(structures)}),
    *(
      section(f'part {number}', picture(figure, f'Picture {number}. More words.'))
      for number, figure in enumerate(pictures(structures, bits, values, names))
    ),
    text('Some words.'),
    table(structures, 'Every structure.'),
    subtitle='of gates',
  ).html()


def test_the_page_stands_alone_and_is_well_formed():
  html = full_report(num_gates=5, gaps=True)
  page = Parsed(html)
  assert page.open == []
  assert len(page.ids) == len(set(page.ids))
  assert html.count('src="data:image/svg+xml;base64,') == page.tags.count('img') == 12
  assert 'alt="Picture 3"' in html  # its caption's first sentence
  (script,) = re.findall('<script[^>]*>(.*?)</script>', html, re.DOTALL)
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  assert f"script-src 'sha256-{digest}';" in html  # no other one runs
  assert 'link' not in page.tags
  for reference in page.references:
    assert reference.startswith('#') or reference.startswith('data:image/svg+xml;base64,')
    assert not reference.startswith('#') or reference[1:] in page.ids
  assert 'url(' not in html
  assert '@import' not in html


def test_a_picture_is_an_svg_that_refers_to_nothing_but_itself():
  source = re.search(
    r'src="data:image/svg\+xml;base64,([^"]*)"', full_report(num_gates=5, gaps=True)
  )[1]
  svg = xml.etree.ElementTree.fromstring(base64.b64decode(source))
  assert svg.tag.endswith('svg')
  references = [
    value
    for element in svg.iter()
    for name, value in element.attrib.items()
    if name.endswith('href') or 'url(' in value
  ]
  assert references
  assert all(re.match(r'#|url\(#', reference) for reference in references)
  assert not any('metadata' in element.tag for element in svg.iter())


@pytest.mark.slow
def test_the_same_pieces_give_the_same_bytes():
  assert full_report(num_gates=3) == full_report.__wrapped__(num_gates=3)


def test_everything_is_escaped():
  bad = '<b>&"bold"</b>'
  frame = pd.DataFrame({bad: [bad]})
  figure = figures.cosines([[1.0]], ['1'])
  pieces = (text(bad), tiles({bad: bad}), table(frame, bad), picture(figure, bad))
  html = Page(bad, section(bad, *pieces), details(bad, {bad: bad}), subtitle=bad).html()
  assert '<b>' not in html
  assert html.count('&lt;b&gt;&amp;&#34;bold&#34;&lt;/b&gt;') == 16
  assert Parsed(html).open == []


@pytest.mark.slow
def test_large_pictures_become_pixels_and_the_page_stays_small():
  html = full_report(num_gates=12)
  assert html.count('data:image/png') == 3
  assert 'data:image/svg+xml' in html
  assert len(html) < 3e6


def test_table_shows_its_first_rows_and_says_so():
  frame = pd.DataFrame({'structure': ['01', '11', '10'], 'loss': [0.1, np.nan, 0.30004]})
  html = Page('t', table(frame, 'All.', max_rows=2)).html()
  assert 'All. First 2 of 3 rows.' in html
  assert re.findall(r'<td class="(\w+)">([^<]*)</td>', html) == [
    ('bits', '01'),
    ('number', '0.1000'),
    ('bits', '11'),
    ('number', '–'),
  ]
  assert 'First' not in Page('t', table(frame, 'All.')).html()


def test_a_wide_table_scrolls_in_its_box_and_keeps_its_first_column():
  frame = pd.DataFrame({'structure': ['01'], **{f'column {i}': [i] for i in range(30)}})
  html = Page('t', table(frame, 'Wide.')).html()
  assert re.search(r'\.scroll \{ overflow-x: auto;', html)
  assert re.search(r'th:first-child, td:first-child \{ position: sticky; left: 0;', html)
  # The caption stands outside the box, so that it does not scroll away.
  assert html.index('Wide.') < html.index('<div class="scroll"')
  assert re.search(r'<div class="scroll" [^>]*tabindex="0"[^>]*><table>', html)


def test_details_are_closed_and_keep_their_lines():
  html = Page('t', details('More', {'Options': 'a  1\nb  2'})).html()
  assert '<details><summary>More</summary>' in html
  assert '<h3>Options</h3>\n<pre>a  1\nb  2</pre>' in html
  assert Parsed(html).open == []


def test_a_page_leaves_out_what_is_none():
  html = Page('t', None, section('empty', None), section('full', None, text('words'))).html()
  assert 'empty' not in html
  assert re.findall(r'<(?:h2|p)[^>]*>([^<]*)<', html) == ['full', 'words']


def test_with_margin():
  assert with_margin(-0.5, 0.25) == '−0.5000 ±\u00a00.2500'
  assert with_margin(0.5, np.nan) == '+0.5000'
  assert with_margin(-0.01, 1.26, 'z.1f', ' %') == '0.0 ±\u00a01.3 %'


@pytest.mark.parametrize(
  ('number', 'expected'), [(0, '0 seeds'), (1, '1 seed'), (2, '2 seeds'), (4096, '4,096 seeds')]
)
def test_counted(number, expected):
  assert counted(number, 'seed') == expected


def test_zero_has_no_sign():
  drawn = figures.cosines([[1.0, -1e-9], [-1e-9, 1.0]], 'ab').axes[0].texts
  assert [text.get_text() for text in drawn] == ['1.00', '0.00', '0.00', '1.00']


def test_numbers_of_tiles_stay_in_one_piece():
  html = Page('t', tiles({'small': 2.6234e-6, 'said': 'not reached', 'one': 7})).html()
  assert re.findall(r'<dd class="([^"]*)">([^<]*)</dd>', html) == [
    ('long whole', '2.623×10⁻⁶'),
    ('long', 'not reached'),
    ('short whole', '7'),
  ]
  assert 'dd.whole { white-space: nowrap; }' in html


def test_contents_only_for_more_than_four_sections():
  sections = [section(heading, text(heading)) for heading in ('a', 'a', 'b', 'c', 'e & f')]
  assert '<nav' not in Page('t', *sections[:4]).html()
  html = Page('t', *sections).html()
  assert '<a href="#section-5">e &amp; f</a>' in html
  assert '<h2 id="section-5">e &amp; f</h2>' in html
  assert len(set(Parsed(html).ids)) == 5


def test_the_readers_own_settings_do_not_matter():
  with matplotlib.rc_context({'font.size': 30, 'axes.facecolor': 'black', 'svg.fonttype': 'none'}):
    theirs = Page('t', picture(figures.cosines(np.eye(2), 'ab'), 'c')).html()
  assert theirs == Page('t', picture(figures.cosines(np.eye(2), 'ab'), 'c')).html()
