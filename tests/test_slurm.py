"""The SLURM scripts in a cluster of two nodes on this machine.

It is made of Debian's `slurm-wlm` and needs root. ADDITIVE_JAX_INSTALL_SLURM=1 lets the tests
install that; otherwise they are skipped where it is missing.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest
import tiny

LAUNCH = tiny.ROOT / 'launch'
PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun', 'scancel', 'scontrol')
PATH = f'{os.environ["PATH"]}:/usr/sbin'
OVER = {'COMPLETED', 'CANCELLED', 'FAILED', 'NODE_FAIL', 'TIMEOUT'}

CONFIG = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
MpiDefault=none
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8
NodeName=zz2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8
PartitionName=all Nodes={host},zz2 Default=YES MaxTime=INFINITE State=UP
"""

# In place of Python: ends, as PLAN/<rank or shard>.<how often SLURM has started it again> says.
PYTHON = """#!/usr/bin/env bash
name=$SLURM_PROCID
for word; do case $word in --config.shard=*) name=shard-${SLURM_ARRAY_TASK_ID} ;; esac; done
echo "$*" >>"$PLAN/$name.calls"
case $(cat "$PLAN/$name.${SLURM_RESTART_COUNT:-0}" 2>/dev/null || echo 0) in
  wait) trap 'exit 75' TERM; touch "$PLAN/$name.ready"; while :; do sleep 0.05; done ;;
  kill) kill -KILL $$ ;;
  2) exit 2 ;;
  75) exit 75 ;;
esac
"""


def command(*words, folder, **more):
  environment = os.environ | {'PATH': PATH, 'SLURM_CONF': str(folder / 'slurm.conf')} | more
  done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
  """The folder of a cluster that is up."""
  if os.environ.get('ADDITIVE_JAX_INSTALL_SLURM'):
    subprocess.run(['apt-get', 'install', '-y', '-q', 'slurm-wlm'], check=True)
  if missing := [name for name in PROGRAMS if not shutil.which(name, path=PATH)]:
    pytest.skip(
      f'no {", ".join(missing)}: install slurm-wlm, or let ADDITIVE_JAX_INSTALL_SLURM=1 do it'
    )
  if os.geteuid() != 0:
    pytest.skip('a SLURM node needs root')
  folder, host = tmp_path_factory.mktemp('slurm'), socket.gethostname()
  with contextlib.ExitStack() as stack:
    free = [stack.enter_context(socket.create_server(('', 0))) for _ in range(3)]
    ports = [server.getsockname()[1] for server in free]
  (folder / 'slurm.conf').write_text(CONFIG.format(host=host, folder=folder, ports=ports))
  (folder / 'state').mkdir()
  (folder / 'key').write_bytes(os.urandom(64))
  (folder / 'key').chmod(0o400)
  files = {'key-file': 'key', 'socket': 'munge.sock', 'pid-file': 'pid', 'seed-file': 'seed'}
  conf = ['-D', '-f', str(folder / 'slurm.conf')]
  daemons = [
    ['munged', '--foreground', '--force', *(f'--{k}={folder / v}' for k, v in files.items())],
    ['slurmctld', *conf],
    ['slurmd', '-N', host, *conf],
    ['slurmd', '-N', 'zz2', *conf],
  ]
  with contextlib.ExitStack() as stack:
    for words in daemons:
      log = stack.enter_context(open(folder / f'{words[0]}.log', 'a'))
      process = stack.enter_context(
        subprocess.Popen(words, env=os.environ | {'PATH': PATH}, stdout=log, stderr=log)
      )
      stack.callback(process.terminate)
      time.sleep(0.5)
    deadline = time.monotonic() + 30
    while 'idle' not in (states := command('sinfo', '-h', '-o', '%T', folder=folder)):
      assert time.monotonic() < deadline, states
      time.sleep(0.2)
    yield folder


class Job:
  """A job of a script whose processes end as the plan says, in a folder of its own."""

  def __init__(self, cluster, folder, script, *words, plan, options=(), **more):
    self.cluster, self.folder, self.script = cluster, folder, script
    folder.mkdir()
    (folder / 'python').write_text(PYTHON)
    (folder / 'python').chmod(0o755)
    for call, end in plan.items():
      (folder / call).write_text(end)
    given = {'PYTHON': str(folder / 'python'), 'PLAN': str(folder)} | more
    output = f'--output={folder}/out'
    self.id = command(
      *('sbatch', '--parsable', output, *options, str(LAUNCH / script), *words),
      folder=cluster,
      **given,
    ).strip()

  def shown(self):
    """State, restarts and exit code, as SLURM has them."""
    text = command('scontrol', 'show', 'job', self.id, folder=self.cluster)
    names = ('JobState', 'Restarts', 'ExitCode')
    state, restarts, code = (re.search(rf'{name}=(\w+)', text)[1] for name in names)
    return state, int(restarts), int(code)

  def ended(self, timeout=60):
    """The same, once the job is over for good."""
    deadline = time.monotonic() + timeout
    while (shown := self.shown())[0] not in OVER:
      assert time.monotonic() < deadline, (shown, self.said())
      time.sleep(0.2)
    return shown

  def ready(self):
    """Waits until both tasks run."""
    deadline = time.monotonic() + 30
    while len(list(self.folder.glob('*.ready'))) < 2:
      assert time.monotonic() < deadline, self.said()
      time.sleep(0.1)

  def said(self):
    path = self.folder / 'out'
    return path.read_text() if path.exists() else ''

  def calls(self, name):
    path = self.folder / f'{name}.calls'
    return path.read_text().splitlines() if path.exists() else []


def test_what_ends_a_job_and_what_queues_it_again(cluster, tmp_path):
  """Time that is up and a kill do, `scancel` and a mistake do not."""
  plans = {
    'time': {'0.0': 'wait', '1.0': 'wait'},
    'killed': {'0.0': '75', '1.0': 'kill'},
    'cancelled': {'0.0': 'wait', '1.0': 'wait'},
    'mistake': {'0.0': '2', '1.0': '2'},
  }
  jobs = {
    name: Job(cluster, tmp_path / name, 'slurm.sbatch', '--config=exp2', plan=plan)
    for name, plan in plans.items()
  }
  jobs['time'].ready()
  command('scancel', '--batch', '--signal=USR1', jobs['time'].id, folder=cluster)
  jobs['cancelled'].ready()
  command('scancel', jobs['cancelled'].id, folder=cluster)
  shown = {name: job.ended() for name, job in jobs.items()}
  assert shown['time'] == ('COMPLETED', 1, 0)
  assert shown['killed'] == ('COMPLETED', 1, 0)
  assert shown['cancelled'][:2] == ('CANCELLED', 0)
  assert shown['mistake'] == ('FAILED', 0, 2)
  for name, count in {'time': 2, 'killed': 2, 'cancelled': 1, 'mistake': 1}.items():
    for rank in range(2):
      calls = jobs[name].calls(rank)
      assert calls == ['-m additive_jax.launch --config=exp2 --coordinator=auto'] * count


def test_arrays_and_parts_of_arrays(cluster, tmp_path):
  def sweep(name, array, **more):
    plan = {'shard-1.0': 'kill'}
    options = [f'--array={array}']
    return Job(cluster, tmp_path / name, 'slurm_shards.sbatch', plan=plan, options=options, **more)

  whole, part, unknown = (
    sweep('whole', '0-1'),
    sweep('part', '5', SHARDS='16'),
    sweep('unknown', '5'),
  )
  assert part.ended() == ('COMPLETED', 0, 0)
  assert part.calls('shard-5') == ['-m additive_jax.launch --config.shard=5/16']
  assert unknown.ended() == ('FAILED', 0, 2)
  assert unknown.said() == (
    'error: array 5 to 5: expected 0 to N-1, or SHARDS=N in the environment of sbatch\n'
  )
  deadline = time.monotonic() + 60
  while len(whole.calls('shard-1')) < 2:  # the one that was killed, again
    assert time.monotonic() < deadline, whole.said()
    time.sleep(0.2)
  assert whole.calls('shard-0') == ['-m additive_jax.launch --config.shard=0/2']
  assert whole.calls('shard-1') == ['-m additive_jax.launch --config.shard=1/2'] * 2


@pytest.mark.slow
def test_a_run_of_two_nodes(cluster, tmp_path):
  """The processes find each other through what SLURM tells, and end with the run."""
  options = {'num_seeds': 1, 'train.structures_per_step': 2}
  args = tiny.arguments('cotrain', tmp_path / 'run', options)
  environment = tiny.environment(tmp_path.parent / 'programs') | {'PYTHON': sys.executable}
  job = Job(cluster, tmp_path / 'job', 'slurm.sbatch', *args, plan={}, **environment)
  assert job.ended(240) == ('COMPLETED', 0, 0), job.said()
  assert f'report: {tmp_path / "run" / "report.html"}' in job.said()
