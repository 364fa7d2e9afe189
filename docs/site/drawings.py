"""Draws the pictures of the concepts as SVG: `python docs/site/drawings.py` writes them all.

A drawing is a function of a canvas. What is on is blue, what is off grey, and what a picture is
about orange.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parents[1] / 'images' / 'concepts'
ON, OFF, ABOUT, INK, PALE = '#0072b2', '#a3abb5', '#d55e00', '#22262b', '#eef3f8'
FONT = 'system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif'


class Canvas:
  """Shapes of one picture, in pixels from the upper left."""

  def __init__(self, width: int, height: int, title: str):
    self.size, self.title, self.parts = (width, height), title, []

  def box(self, x, y, width, height, words='', colour=ON, fill=PALE, dashed=False):
    """Adds a rectangle with words in it."""
    dash = ' stroke-dasharray="5 4"' if dashed else ''
    self.parts.append(
      f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{fill}" '
      f'stroke="{colour}" stroke-width="1.6"{dash}/>'
    )
    if words:
      self.text(x + width / 2, y + height / 2, words, INK if colour != OFF else OFF)

  def text(self, x, y, words, colour=INK, size=14, anchor='middle', bold=False):
    """Adds a line of text, centred at a place or beside it; `_a` lowers the letter a."""
    weight = ' font-weight="600"' if bold else ''
    pieces = words.split('_')
    inner = html.escape(pieces[0])
    for piece in pieces[1:]:
      inner += f'<tspan dy="4" font-size="{size - 4}">{html.escape(piece[0])}</tspan>'
      inner += f'<tspan dy="-4">{html.escape(piece[1:])}</tspan>'
    self.parts.append(
      f'<text x="{x}" y="{y}" fill="{colour}" font-size="{size}" text-anchor="{anchor}" '
      f'dominant-baseline="central"{weight}>{inner}</text>'
    )

  def line(self, *points, colour=ON, width=2.0, arrow=True, dashed=False):
    """Adds a line through points, with an arrow at its end."""
    way = ' '.join(f'{x},{y}' for x, y in points)
    name = {ON: 'on', OFF: 'off', ABOUT: 'about', INK: 'ink'}[colour]
    head = f' marker-end="url(#{name})"' if arrow else ''
    dash = ' stroke-dasharray="5 4"' if dashed else ''
    self.parts.append(
      f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="{width}"{head}{dash}/>'
    )

  def plus(self, x, y, bit=None, on=True, radius=12):
    """Adds a `+` as a gate, with its bit above it."""
    colour = ON if on else OFF
    self.parts.append(
      f'<circle cx="{x}" cy="{y}" r="{radius}" fill="white" stroke="{colour}" stroke-width="2"/>'
    )
    reach = radius - 5
    for dx, dy in ((reach, 0), (0, reach)) if on else ():
      self.parts.append(
        f'<line x1="{x - dx}" y1="{y - dy}" x2="{x + dx}" y2="{y + dy}" stroke="{colour}" '
        'stroke-width="2.4"/>'
      )
    if bit is not None:
      self.text(x, y - radius - 10, bit, ABOUT if on else OFF, 14, bold=True)

  def svg(self) -> str:
    """Returns the picture."""
    width, height = self.size
    heads = ''.join(
      f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
      f'orient="auto-start-reverse" markerUnits="userSpaceOnUse"><path d="M0,0 L8,4 L0,8 z" '
      f'fill="{colour}"/></marker>'
      for name, colour in (('on', ON), ('off', OFF), ('about', ABOUT), ('ink', INK))
    )
    body = '\n'.join(self.parts)
    return (
      f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
      f"font-family='{FONT}'><title>{html.escape(self.title)}</title><defs>{heads}</defs>\n"
      f'<rect width="{width}" height="{height}" rx="8" fill="white"/>\n{body}\n</svg>\n'
    )


def network() -> Canvas:
  """Draws a network of four gates, one of them off."""
  c = Canvas(900, 210, 'A network of four residual blocks with gates 1 0 1 1')
  c.box(20, 120, 90, 44, 'embed')
  c.line((110, 142), (790, 142))
  c.box(795, 120, 90, 44, 'readout')
  for number, bit in enumerate('1011'):
    x, on = 150 + 160 * number, bit == '1'
    colour = ON if on else OFF
    c.line((x, 142), (x, 62), (x + 20, 62), colour=colour, dashed=not on)
    c.box(x + 22, 42, 66, 40, f'f_{number}', colour, PALE if on else 'white', dashed=not on)
    c.line((x + 88, 62), (x + 112, 62), (x + 112, 128), colour=colour, dashed=not on)
    c.plus(x + 112, 142, on=on)
    c.text(x + 112, 176, bit, ABOUT if on else OFF, 18, bold=True)
  c.text(450, 198, 'structure 1011: every + is a gate; 2⁴ structures share one pool', INK, 13)
  return c


def gates_mlp() -> Canvas:
  """Draws the three kinds of gates in an MLP block."""
  c = Canvas(900, 560, 'The three plus signs of an MLP block')
  c.text(24, 26, 'Residual: y = x + g·f(x)', INK, 16, 'start', bold=True)
  for x, bit in ((30, '1'), (470, '0')):
    on = bit == '1'
    colour = ON if on else OFF
    c.text(x, 92, 'x', anchor='start')
    c.line((x + 18, 92), (x + 340, 92))
    c.line((x + 60, 92), (x + 60, 58), (x + 112, 58), colour=colour, dashed=not on)
    c.box(x + 114, 42, 90, 32, 'f', colour, PALE if on else 'white', dashed=not on)
    c.line((x + 204, 58), (x + 280, 58), (x + 280, 78), colour=colour, dashed=not on)
    c.plus(x + 280, 92, on=on)
    c.text(x + 304, 66, bit, ABOUT if on else OFF, 16, bold=True)
    c.text(x + 352, 92, 'y', anchor='start')
  c.text(750, 122, 'off: f is skipped, no parameters read', OFF, 12)

  c.text(24, 158, 'Sub-activation: m = 3 chunks, 2 gates, here 1 0', INK, 16, 'start', bold=True)
  rows = (205, 265, 325)
  for number, y in enumerate(rows, start=1):
    c.box(40, y - 18, 60, 36, f'x_{number}')
    c.line((100, y), (148, y))
    c.box(150, y - 18, 60, 36, f'A_{number}')
    c.line((210, y), (268, y), arrow=False)
    c.text(240, y - 12, f'P_{number}', INK, 13)
    c.box(620, y - 18, 60, 36, f'B_{number}')
    c.line((680, y), (738, y))
    c.box(740, y - 18, 60, 36, f'y_{number}')
  c.line((282, 205), (282, 222), arrow=False)
  c.line((282, 265), (282, 248), arrow=False)
  c.line((268, 205), (282, 205), arrow=False)
  c.line((268, 265), (282, 265), arrow=False)
  c.plus(282, 235)
  c.text(258, 235, '1', ABOUT, 16, bold=True)
  c.line((294, 235), (388, 235))
  c.plus(282, 295, on=False)
  c.text(258, 295, '0', OFF, 16, bold=True)
  c.line((268, 325), (388, 325))
  c.box(390, 217, 120, 36, 'act(P_1 + P_2)')
  c.box(390, 307, 120, 36, 'act(P_3)')
  c.line((510, 235), (560, 235), (560, 205), (618, 205))
  c.line((560, 235), (560, 265), (618, 265))
  c.line((510, 325), (618, 325))
  words = 'joined chunks are one group before the activation; each output chunk reads its group'
  c.text(450, 368, words, INK, 12)

  c.text(24, 408, 'Lane: P = 2 lanes, each with its own half of the hidden units', INK, 16, 'start',
         bold=True)  # fmt: skip
  _lanes(c, 40, 'f_1', 'f_2', '1')
  _lanes(c, 480, 'f_1', 'f_2', '0')
  return c


def _lanes(c, x, first, second, bit):
  on = bit == '1'
  for row, (y, name) in enumerate(((455, first), (515, second)), start=1):
    c.text(x, y, f'x_{row}', anchor='start')
    c.line((x + 24, y), (x + 88, y))
    c.box(x + 90, y - 17, 70, 34, name)
    c.line((x + 160, y), (x + 330, y))
  if on:
    c.line((x + 230, 455), (x + 230, 471), arrow=False)
    c.line((x + 230, 515), (x + 230, 499), arrow=False)
    c.plus(x + 230, 485)
    c.line((x + 242, 485), (x + 290, 485), (x + 290, 459), colour=ABOUT)
    c.line((x + 290, 485), (x + 290, 511), colour=ABOUT)
    c.text(x + 206, 485, '1', ABOUT, 16, bold=True)
    c.text(x + 190, 545, 'one all-reduce: all lanes get the sum', INK, 12)
  else:
    c.plus(x + 230, 485, on=False)
    c.text(x + 206, 485, '0', OFF, 16, bold=True)
    c.text(x + 190, 545, 'no communication: each keeps its own', OFF, 12)


def gates_attention() -> Canvas:
  """Draws where the gates of a transformer's layer are."""
  c = Canvas(900, 300, 'The plus signs of a transformer layer')
  c.text(
    24, 26, 'A layer with two lanes: four heads, two for each lane', INK, 16, 'start', bold=True
  )
  c.text(20, 200, 'x', anchor='start')
  c.line((36, 200), (880, 200))
  _branch(c, 60, ('heads 1, 2', 'heads 3, 4'), 'attention', inner='')
  _branch(c, 480, ('units 1 … H/2', 'units H/2 … H'), 'feed-forward', inner='chunks')
  c.text(450, 284, 'orange: gates, one bit each', ABOUT, 13)
  return c


def _branch(c, x, shares, name, inner):
  c.line((x, 200), (x, 96), (x + 28, 96))
  c.box(x + 30, 78, 66, 36, 'norm')
  for y, words in ((72, shares[0]), (120, shares[1])):
    c.line((x + 96, 96), (x + 112, 96), (x + 112, y), (x + 126, y))
    c.box(x + 128, y - 18, 110, 36, words)
    c.line((x + 238, y), (x + 270, y), (x + 270, 96 + (-14 if y < 96 else 14)))
  c.plus(x + 270, 96)
  c.text(x + 270, 52, 'lane', ABOUT, 13, bold=True)
  c.line((x + 282, 96), (x + 330, 96), (x + 330, 186))
  c.plus(x + 330, 200)
  c.text(x + 330, 228, 'residual', ABOUT, 13, bold=True)
  c.text(x + 183, 158, name, INK, 14, bold=True)
  if inner:
    c.text(x + 183, 178, f'sub-activation: {inner}', ABOUT, 12, bold=True)


def prefix() -> Canvas:
  """Draws the walk over all structures of three gates."""
  c = Canvas(900, 350, 'Shared-prefix evaluation of three gates')
  names = ('embed', 'site 0', 'site 1', 'site 2')
  columns = (90, 310, 530, 750)
  for x, name in zip(columns, names):
    c.text(x, 26, name, INK, 15, bold=True)
  heights = [[191], [115, 267], [77, 153, 229, 305], [58 + 38 * i for i in range(8)]]
  for level, ys in enumerate(heights):
    for place, y in enumerate(ys):
      bits = f'{place:0{level}b}' if level else ''
      off = level > 0 and bits[-1] == '0'
      x = columns[level]
      if level:
        parent = heights[level - 1][place // 2]
        colour = OFF if off else ON
        c.line((columns[level - 1] + 42, parent), (x - 44, y), colour=colour, dashed=off)
      size = (84, 30) if level < 3 else (84, 26)
      c.box(x - 42, y - size[1] / 2, *size, bits or 'h', OFF if off else ON,
            'white' if off else PALE, dashed=off)  # fmt: skip
  c.line((60, 308), (110, 308))
  c.text(120, 308, 'the site runs: 7 times, not 12', INK, 13, 'start')
  c.line((60, 330), (110, 330), colour=OFF, dashed=True)
  c.text(120, 330, 'off: the stream of the prefix is taken as it is', OFF, 13, 'start')
  return c


def spans() -> Canvas:
  """Draws which spans the structures of three chunks are made of."""
  c = Canvas(900, 310, 'A mixture of the structures of three chunks, by its spans')
  c.text(150, 28, '4 structures', INK, 15, bold=True)
  c.text(450, 28, '6 spans, each computed once', INK, 15, bold=True)
  c.text(760, 28, 'output chunks', INK, 15, bold=True)
  groups = {'00': ['1', '2', '3'], '10': ['12', '3'], '01': ['1', '23'], '11': ['123']}
  every = ['1', '2', '3', '12', '23', '123']
  at = {span: 60 + 42 * number for number, span in enumerate(every)}
  for number, (bits, own) in enumerate(groups.items()):
    y = 75 + 58 * number
    about = bits == '10'
    c.box(70, y - 18, 160, 36, '', ABOUT if about else ON)
    c.text(100, y, bits, ABOUT if about else INK, 15, bold=True)
    c.text(175, y, ' | '.join(own), INK, 14)
    for span in own:
      colour = ABOUT if about else OFF
      c.line((230, y), (378, at[span]), colour=colour, width=2 if about else 1, arrow=about)
  for span, y in at.items():
    sums = ' + '.join(f'P_{chunk}' for chunk in span)
    c.box(380, y - 16, 150, 32, f'act({sums})')
    for chunk in span:
      c.line((530, y), (718, 90 + 70 * (int(chunk) - 1)), colour=OFF, width=1, arrow=False)
  for chunk in (1, 2, 3):
    c.box(720, 90 + 70 * (chunk - 1) - 18, 80, 36, f'y_{chunk}')
  words = (
    'the weight of a span is the sum of the weights of the structures that have it as a group; '
    'B is linear, so it is applied once'
  )
  c.text(450, 298, words, INK, 12)
  return c


def transplant() -> Canvas:
  """Draws how a network grows in width and in depth."""
  c = Canvas(900, 300, 'Growing a network without changing what it computes')
  c.text(24, 26, 'Width: a unit gets copies', INK, 16, 'start', bold=True)
  c.box(40, 110, 60, 36, 'a')
  c.line((100, 128), (168, 128))
  c.text(132, 114, 'w', INK, 13)
  c.box(170, 110, 60, 36, 'out')
  c.line((245, 128), (285, 128), colour=INK)
  c.box(300, 70, 60, 36, 'a′')
  c.box(300, 150, 60, 36, 'a″')
  c.line((360, 88), (438, 120), colour=ABOUT)
  c.line((360, 168), (438, 136), colour=ABOUT)
  c.text(402, 84, '0.6·w', ABOUT, 13, bold=True)
  c.text(402, 174, '0.4·w', ABOUT, 13, bold=True)
  c.box(440, 110, 60, 36, 'out')
  c.text(270, 220, 'copies read alike, and share what reads them', INK, 13)
  c.text(270, 240, 'in unequal parts, so that they do not stay alike', INK, 13)
  c.text(540, 26, 'Depth: a block adds nothing at first', INK, 16, 'start', bold=True)
  c.line((550, 160), (880, 160))
  for x, name, new in ((570, 'f_1', False), (730, 'new', True)):
    colour = ABOUT if new else ON
    c.line((x, 160), (x, 88), (x + 18, 88), colour=colour)
    c.box(x + 20, 70, 60, 36, name, colour)
    c.line((x + 80, 88), (x + 105, 88), (x + 105, 146), colour=colour)
    c.plus(x + 105, 160)
    if new:
      c.text(x + 124, 116, '0', ABOUT, 15, bold=True)
  c.text(715, 220, 'its last matrix is zero, or its gate is off:', INK, 13)
  c.text(715, 240, 'the outputs are those of before, to rounding', INK, 13)
  c.text(
    450,
    280,
    'the receipt is the largest difference of the outputs on a batch',
    ABOUT,
    13,
    bold=True,
  )
  return c


DRAWINGS: tuple[Callable[[], Canvas], ...] = (
  network,
  gates_mlp,
  gates_attention,
  prefix,
  spans,
  transplant,
)

if __name__ == '__main__':
  FOLDER.mkdir(parents=True, exist_ok=True)
  for drawing in DRAWINGS:
    (FOLDER / f'{drawing.__name__}.svg').write_text(drawing().svg())
