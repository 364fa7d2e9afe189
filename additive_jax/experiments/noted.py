"""What the arms of a run are, noted when it was begun."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from additive_jax.errors import UserError
from additive_jax.experiments.session import Session
from additive_jax.files.journal import Journal, to_plain
from additive_jax.files.rundir import differences
from additive_jax.parallel import processes

log = logging.getLogger('additive_jax')


def check_same(session: Session, study: str, arms: Sequence[Any]) -> None:
  """Notes what each arm is, and raises `UserError` for one that was something else when the run was
  begun: its records and checkpoints would be taken for those of the new one."""
  journal = Journal(session.rundir.journals / f'{study}.arms.jsonl')
  noted: dict[str, Any] = {}
  for line in journal.sound():
    if noted.setdefault(line['arm'], line['is']) != line['is']:
      log.warning('%s: a second line for %s; the first one counts', journal.path, line['arm'])
  for arm in arms:
    if not hasattr(arm, 'described'):
      continue
    described = to_plain(arm.described())
    if arm.name not in noted:
      if processes.is_primary() and session.shard[0] == 0:
        journal.append({'arm': arm.name, 'is': described})
    elif different := differences(noted[arm.name], described):
      raise UserError(
        f'{session.rundir.path} has trained another arm {arm.name!r}: {"; ".join(different)}; '
        'choose another workdir'
      )
