"""A command as a process: its streams, which may be closed, and its signals."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

from additive_jax.errors import UserError, one_line
from additive_jax.files.signals import answering


def run_command(main: Callable[[list[str]], int], argv: list[str], *, resumes: bool = False) -> int:
  """Runs the main function of a command, and returns its exit code.

  Nobody has to read what it says: a closed or broken standard output or standard error stops
  nothing, as in `additive-jax --help | head -1`.

  Args:
    main: takes the command line and returns the exit code.
    argv: the command line, the program first.
    resumes: whether the same command goes on after a signal; see `signals.answering`.
  """
  _open_streams()
  streams = sys.stdout, sys.stderr
  sys.stdout, sys.stderr = Unbroken(sys.stdout), Unbroken(sys.stderr)
  try:
    with answering() if resumes else contextlib.nullcontext():
      return main(argv)
  finally:
    for stream in (sys.stdout, sys.stderr):
      stream.flush()
    sys.stdout, sys.stderr = streams


def answered(
  run: Callable[[list[str]], int], argv: list[str], manual: str | Callable[[], str] | None
) -> int:
  """Returns the exit code of what a command line asks for: a mistake in it is one line on standard
  error and 2, an interrupt 130, and `--help` prints the manual.

  >>> answered(len, ['additive-jax', '--help'], 'Ranks structures.')
  Ranks structures.
  0

  Args:
    run: takes the command line and returns the exit code.
    argv: the command line, the program first.
    manual: what `--help` says, or a function that returns it.
  """
  if {'--help', '-h'} & set(argv):
    print(manual() if callable(manual) else manual)
    return 0
  try:
    return run(argv)
  except UserError as error:
    print(f'error: {one_line(error)}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    return 130


class Unbroken:
  """A text stream that drops what cannot be written, since a reader that left or a terminal that
  was closed is no reason to end.

  >>> reader, writer = os.pipe()
  >>> os.close(reader)
  >>> with open(writer, 'w') as pipe:
  ...   print('to nobody', file=Unbroken(pipe), flush=True)
  """

  def __init__(self, stream: Any):
    self._stream = stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Writes the text, or drops it."""
    with self._dropping():
      self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    """Writes what waits to be written, or drops it."""
    with self._dropping():
      self._stream.flush()

  @contextlib.contextmanager
  def _dropping(self):
    try:
      yield
    except OSError:
      # What is still in the buffer would be tried again, and told of, when Python ends.
      nowhere = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nowhere, self._stream.fileno())
      os.close(nowhere)


def _open_streams() -> None:
  """Opens standard streams that are closed: the next file to be opened would take their numbers,
  and with them what compiled code says."""
  for number, mode in enumerate('rww'):
    try:
      os.fstat(number)
    except OSError:
      # The lowest number that is free, which is this one.
      os.open(os.devnull, os.O_RDWR)
    name = ('stdin', 'stdout', 'stderr')[number]
    if getattr(sys, name) is None:
      setattr(sys, name, os.fdopen(number, mode, closefd=False))
