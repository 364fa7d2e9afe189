"""The one exception for a user's mistake, and errors of others in one line."""


class UserError(ValueError):
  """What was asked for cannot be done, and the person who asked can mend it.

  The message is one line: it repeats the offending value and says what was expected. The launcher
  prints it without a traceback and exits with code 2; in a notebook it is an ordinary `ValueError`.
  """


def one_line(error: Exception) -> str:
  """What an error says, without line breaks."""
  text = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
  return ' '.join(text.split())
