"""The picture of a pipeline: what each device works on, and when it waits."""

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Patch

from additive_jax.report.plot_style import BLUE, FAINT, INK, VERMILION, drawing

# Microbatches in order, forward and backward, from pale to full.
WAYS = {'forward': BLUE, 'backward': VERMILION}


def timeline(busy, microbatch, forward, backward=None, *, note=''):
  """A row for each device: its ticks of the forward pass in order, then those of the backward pass
  from the last to the first, coloured by microbatch; grey where the device waits.

  Args:
    busy: bool [P, ticks], whether the device works.
    microbatch: int [P, ticks], on which one.
    forward, backward: how long each takes, in seconds, [P, ticks]; a tick lasts as long as its
      slowest device's. No backward pass is drawn for None.
    note: said above the picture, such as the bubble.
  """
  busy, microbatch = np.asarray(busy, bool), np.asarray(microbatch)
  passes = {'forward': np.asarray(forward, float)}
  if backward is not None:
    passes['backward'] = np.asarray(backward, float)
  count, num_ticks = busy.shape
  with drawing(9.6, 1.1 + 0.36 * count) as (figure, (axes,)):
    start = 0.0
    for way, seconds in passes.items():
      colours = _shades(WAYS[way], microbatch.max() + 1)
      order = range(num_ticks) if way == 'forward' else range(num_ticks - 1, -1, -1)
      for tick in order:
        lasts = seconds[:, tick].max()
        axes.barh(range(count), lasts, 0.82, start, color=FAINT, linewidth=0)
        for device in np.flatnonzero(busy[:, tick]):
          number, length = microbatch[device, tick], seconds[device, tick]
          axes.barh(device, length, 0.82, start, color=colours[number], ec='white', lw=0.5)
          if num_ticks <= 24:
            at = start + length / 2
            axes.text(at, device, number, ha='center', va='center', fontsize=6.5, color=INK)
        start += lasts
    axes.set_xlim(0, start)
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_yticks(range(count), [f'device {device}' for device in range(count)])
    axes.set_xlabel('seconds, ticks one after the other; numbers are microbatches')
    axes.grid(visible=False)
    handles = [Patch(color=_shades(WAYS[way], 3)[1], label=way) for way in passes]
    handles.append(Patch(color=FAINT, label='waits'))
    axes.legend(handles=handles, ncols=3, loc='lower right', bbox_to_anchor=(1, 1.0))
    axes.set_title(note)
  return figure


def _shades(colour, count):
  scale = LinearSegmentedColormap.from_list('shades', ['white', colour])
  return [scale(share) for share in np.linspace(0.3, 0.85, count)]
