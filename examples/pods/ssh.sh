#!/usr/bin/env bash
# Plain hosts: run the same command on each over ssh, as one job. The repository must be at the same path on all.
#
#   HOSTS="node0 node1" examples/pods/ssh.sh train.py --config=configs/train/1b.py --workdir=/shared/1b --config.mesh.data=2
#
# The first host is the coordinator; the others must reach its PORT. Ctrl-C saves and stops all. Run it again to resume.
# The exit code is that of the first host.
set -uo pipefail

read -ra hosts <<<"${HOSTS:?names of the hosts, such as HOSTS='node0 node1'}"
folder=${FOLDER:-$PWD} port=${PORT:-8476}
number=/tmp/lmcraft-$port.pid # on the first host: its process

started=()
for i in "${!hosts[@]}"; do
  job="JAX_COORDINATOR_ADDRESS=${hosts[0]}:$port JAX_NUM_PROCESSES=${#hosts[@]} JAX_PROCESS_ID=$i"
  command="exec env $job $(printf '%q ' "${PYTHON:-.venv/bin/python}" "$@")"
  if ((i == 0)); then command="echo \$\$ >$number && $command"; fi
  ssh "${hosts[i]}" "cd $(printf %q "$folder") && $command" </dev/null & # in the background it ignores Ctrl-C
  started+=($!)
done
trap 'ssh "${hosts[0]}" "kill -TERM \$(cat $number)" </dev/null' INT TERM

for process in "${started[@]}"; do
  while kill -0 "$process" 2>/dev/null; do wait "$process"; done # a signal ends `wait` early
done
wait "${started[0]}"
