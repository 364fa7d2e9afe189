"""The picture of a pipeline: what each device works on, and when it waits."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from additive_jax.report.figures import marks, style

# Microbatches in order, from pale to full.
_ENDS = {'forward': ('#b2d5e7', '#2687bd'), 'backward': ('#f2ceb2', '#db7626')}


def pipeline_timeline(
  busy: ArrayLike,
  microbatch: ArrayLike,
  forward: ArrayLike,
  backward: ArrayLike | None = None,
) -> Figure:
  """Draws a row for each device with its ticks, coloured by microbatch; grey where it waits.

  Ticks of the forward pass come in order, then those of the backward pass from the last to the
  first. A tick lasts as long as its slowest device's.

  >>> busy = [[True, True, False], [False, True, True]]  # two devices, three ticks
  >>> microbatch = [[0, 1, 0], [0, 0, 1]]
  >>> figure = pipeline_timeline(busy, microbatch, forward=np.full((2, 3), 0.1))
  >>> [text.get_text() for text in figure.axes[0].texts]
  ['0', '1', '0', '1']

  Args:
    busy: bool `[P, ticks]`, whether the device works.
    microbatch: int `[P, ticks]`, on which one.
    forward, backward: seconds `[P, ticks]`; no backward pass is drawn for None.
  """
  busy, microbatch = np.asarray(busy, bool), np.asarray(microbatch)
  passes = {'forward': forward} if backward is None else {'forward': forward, 'backward': backward}
  devices, num_ticks = busy.shape
  with style.drawing(9.6, 1.1 + 0.36 * devices) as (figure, [[axes]]):
    start = 0.0
    for way, values in passes.items():
      seconds, colours = np.asarray(values, float), style.shades(microbatch.max() + 1, _ENDS[way])
      for tick in range(num_ticks) if way == 'forward' else reversed(range(num_ticks)):
        axes.barh(
          range(devices), seconds[:, tick].max(), 0.82, start, color=style.FAINT, linewidth=0
        )
        for device in np.flatnonzero(busy[:, tick]):
          number, length = microbatch[device, tick], seconds[device, tick]
          axes.barh(device, length, 0.82, start, color=colours[number], ec='white', lw=0.5)
          if num_ticks <= 24:
            middle = {'ha': 'center', 'va': 'center', 'fontsize': 6.5, 'color': style.INK}
            axes.text(start + length / 2, device, number, **middle)
        start += seconds[:, tick].max()
    axes.set_xlim(0, start)
    marks.name_rows(axes, [f'device {device}' for device in range(devices)])
    axes.set_xlabel('seconds, ticks one after the other; numbers are microbatches')
    axes.grid(visible=False)
    handles = [Patch(color=style.shades(3, _ENDS[way])[1], label=way) for way in passes]
    handles.append(Patch(color=style.FAINT, label='waits'))
    axes.legend(handles=handles, ncols=3, loc='lower right', bbox_to_anchor=(1, 1.0))
  return figure
