"""Pictures of runs, which most tests do not look at: there they are made, but not drawn."""

import contextlib

from matplotlib.figure import Figure

from additive_jax.report import page

DRAWN = (page._data_uri, Figure.draw_without_rendering)
BLANK = (lambda figure: 'data:image/svg+xml;base64,', lambda figure: None)
# Files of tests that look at pictures.
LOOKING = ('test_report', 'test_figures', 'test_routing_figures', 'test_studies')


@contextlib.contextmanager
def drawn(how=DRAWN):
  """Draws every picture of a page, or leaves all of them blank."""
  before = page._data_uri, Figure.draw_without_rendering
  page._data_uri, Figure.draw_without_rendering = how
  try:
    yield
  finally:
    page._data_uri, Figure.draw_without_rendering = before


def for_file(name):
  """As a file of tests wants them."""
  return drawn(DRAWN if name in LOOKING else BLANK)
