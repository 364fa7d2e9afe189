"""The launch scripts: what they do with each exit code, and what Kubernetes' own models say."""

import json
import os
import signal
import subprocess
import time

import pytest
import tiny

from additive_jax.version import __version__

LAUNCH = tiny.ROOT / 'launch'

# In place of Python: ends, as PLAN/<rank>.<number of the call> says, with a code or as a signal
# makes it.
PYTHON = """#!/usr/bin/env bash
rank=${RANK:-merge}
for word; do
  case $word in
    --process_id=*) rank=${word#*=} ;;
    --config.shard=*) rank=${word#*=} rank=${rank%/*} ;;
  esac
done
echo "$*" >>"$PLAN/$rank.calls"
end=$(cat "$PLAN/$rank.$(wc -l <"$PLAN/$rank.calls")" 2>/dev/null || echo 0)
case $end in
  wait) trap 'exit 75' TERM; touch "$PLAN/$rank.ready"; while :; do sleep 0.05; done ;;
  kill) kill -KILL $$ ;;
  *) exit "$end" ;;
esac
"""

# In place of gcloud: two hosts, which are folders.
GCLOUD = """#!/usr/bin/env bash
for word; do case $word in --command=*) command=${word#*=} ;; esac; done
code=0 pids=()
for rank in 0 1; do
  HOME=$PLAN/host-$rank RANK=$rank bash -c "$command" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit "$code"
"""

SCRIPTS = {
  'local': ['local.sh', '2'],
  'restarts': ['local.sh', '--restarts=1', '2'],
  'shards': ['shards.sh', '2'],
  'tpu': ['tpu_pod.sh'],
}


@pytest.fixture
def start(tmp_path):
  """Starts a script whose processes end as they are told."""

  def started(name, plan):
    for command, text in {'python': PYTHON, 'gcloud': GCLOUD}.items():
      (tmp_path / command).write_text(text)
      (tmp_path / command).chmod(0o755)
    for call, end in plan.items():
      (tmp_path / call).write_text(end)
    for rank in range(2):
      (tmp_path / f'host-{rank}' / 'additive_jax').mkdir(parents=True)
    environment = os.environ | {
      'PATH': f'{tmp_path}:{os.environ["PATH"]}',
      'PLAN': str(tmp_path),
      'LOGS': str(tmp_path),
      'TPU': 'pod',
      'ZONE': 'zone',
      'RESTARTS': '1',
    }
    script, *words = SCRIPTS[name]
    command = ['bash', str(LAUNCH / script), *words, '--config=exp2', '--config.x=(1, 2)']
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

  return started


def calls(folder, rank):
  path = folder / f'{rank}.calls'
  return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
  ('name', 'plan', 'code', 'count'),
  [
    ('local', {}, 0, 1),
    ('local', {'0.1': '75', '1.1': '75'}, 75, 1),
    ('local', {'0.1': '75', '1.1': 'kill'}, 75, 1),
    ('local', {'0.1': '75', '1.1': '2'}, 2, 1),
    ('restarts', {'0.1': '75', '1.1': 'kill'}, 0, 2),
    ('restarts', {f'{rank}.{n}': '75' for rank in (0, 1) for n in (1, 2)}, 75, 2),
    ('restarts', {'0.1': '2', '1.1': '2'}, 2, 1),
    ('shards', {}, 0, 1),
    ('shards', {'0.1': '75'}, 75, 1),
    ('shards', {'1.1': 'kill'}, 75, 1),
    ('shards', {'0.1': '2', '1.1': '75'}, 2, 1),
    ('tpu', {}, 0, 1),
    ('tpu', {'0.1': '75', '1.1': 'kill'}, 0, 2),
    ('tpu', {'0.1': '2', '1.1': '2'}, 2, 1),
  ],
)
def test_codes_of_the_processes(tmp_path, start, name, plan, code, count):
  """A mistake ends all; what was stopped or killed may be started again; shards merge when done."""
  process = start(name, plan)
  _, err = process.communicate(timeout=30)
  assert process.returncode == code, err
  for rank in range(2):
    assert len(calls(tmp_path, rank)) == count
    assert '-m additive_jax.launch' in calls(tmp_path, rank)[0]
    assert '--config=exp2 --config.x=(1, 2)' in calls(tmp_path, rank)[0]
  assert len(calls(tmp_path, 'merge')) == (name == 'shards' and code == 0)


@pytest.mark.parametrize('name', ['restarts', 'shards', 'tpu'])
def test_a_stopped_script_stops_all_and_starts_none_again(tmp_path, start, name):
  process = start(name, {'0.1': 'wait', '1.1': 'wait'})
  while not all((tmp_path / f'{rank}.ready').exists() for rank in range(2)):
    assert process.poll() is None
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=30)
  assert process.returncode == 75, err
  assert [len(calls(tmp_path, rank)) for rank in (0, 1, 'merge')] == [1, 1, 0]


def test_numbers_that_are_none(start, tmp_path):
  for words in (['--restarts=x', '2'], ['two'], ['--restarts=1']):
    command = ['bash', str(LAUNCH / 'local.sh'), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode in (1, 2)
    assert 'usage: launch/local.sh [--restarts=N] PROCESSES' in done.stderr
    assert done.stderr.count('\n') == 1


def test_kubernetes_takes_every_field():
  """Its client's models know each field, and miss none that is required."""
  yaml = pytest.importorskip('yaml')
  client = pytest.importorskip('kubernetes.client')
  documents = list(yaml.safe_load_all((LAUNCH / 'kubernetes.yaml').read_text()))
  api = client.ApiClient()
  for document in documents:
    model = api.deserialize(json.dumps(document), f'V1{document["kind"]}', 'application/json')
    # What no model has a field for would be gone.
    assert api.sanitize_for_serialization(model) == document
  service, job = documents
  (container,) = job['spec']['template']['spec']['containers']
  assert container['image'].rpartition(':')[2] == __version__
  host = f'{job["metadata"]["name"]}-0.{service["metadata"]["name"]}:'
  assert f'--coordinator={host}' in container['args'][0]
  cores = container['resources']['requests']['cpu']
  assert f' --devices={cores} ' in container['args'][0]
