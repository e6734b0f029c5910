#!/usr/bin/env bash
# Cloud TPU VMs: get one or several slices as a queued resource, and run the same command on all of their hosts.
#
#   export NAME=pod ZONE=us-east5-a TYPE=v6e-256 RUNTIME=v2-alpha-tpuv6e SLICES=2 REPO=https://HOST/lmcraft.git
#   examples/pods/tpu_vm.sh create        # then wait until `examples/pods/tpu_vm.sh state` says ACTIVE
#   examples/pods/tpu_vm.sh install       # clones REPO and installs it on every host
#   examples/pods/tpu_vm.sh run train.py --config=configs/train/1b.py --workdir=/shared/1b --config.mesh.data=2
#   examples/pods/tpu_vm.sh delete
#
# Run `run` again to resume. With RESTARTS=20 each host repeats the command after a failure; all end together, so all start
# together. A mistake in the config (exit code 2) is not repeated. The workdir must be on a file system that all hosts share.
set -euo pipefail

: "${NAME:?name of the queued resource}" "${ZONE:?such as us-east5-a}"

on_all() {
  gcloud compute tpus queued-resources ssh "$NAME" --zone="$ZONE" --node=all --worker=all --batch-size=all --command="$1"
}

case ${1:-} in
create)
  : "${TYPE:?such as v6e-256}" "${RUNTIME:?such as v2-alpha-tpuv6e}"
  nodes=(--node-id="$NAME")
  if ((${SLICES:-1} > 1)); then nodes=(--node-count="$SLICES" --node-prefix="$NAME"); fi
  gcloud compute tpus queued-resources create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" --runtime-version="$RUNTIME" \
    "${nodes[@]}" "${@:2}"
  ;;
state)
  gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)'
  ;;
install)
  on_all "git clone --quiet $(printf %q "${REPO:?address of the git repository}") lmcraft && cd lmcraft &&
python3 -m venv .venv && .venv/bin/pip install --quiet -e '.[tpu]'"
  ;;
run)
  on_all "cd lmcraft && for left in \$(seq ${RESTARTS:-0} -1 0); do
.venv/bin/python $(printf '%q ' "${@:2}") && exit 0; code=\$?; if [ \$code = 2 ]; then break; fi; sleep 10; done; exit \$code"
  ;;
delete)
  gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
  ;;
*)
  sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
  exit 2
  ;;
esac
