#!/bin/bash
# Pre-trains on all hosts of a TPU slice, from your own machine:
#     launch/cluster/tpu_vm.sh install    # the code, JAX for TPUs, and the shared disk; again for a slice made anew
#     launch/cluster/tpu_vm.sh start      # or resume; does nothing on hosts where it runs
#     launch/cluster/tpu_vm.sh log
#     launch/cluster/tpu_vm.sh stop       # saves first
# The slice is yours to make, with gcloud compute tpus tpu-vm create or as a queued resource. If it is preempted, make
# it again, then install and start: the run resumes, on a slice of another size too.
set -eu

TPU=${TPU:-my-tpu}
ZONE=${ZONE:-us-central1-a}
SOURCE=${SOURCE:-https://github.com/OWNER/mimic_jax}
# An NFS share that all hosts reach (Filestore, for one), for the workdir and the data. A workdir is no gs:// path.
SHARE=${SHARE:-10.0.0.2:/share}
MOUNT=${MOUNT:-/mnt/share}
CONFIG=${CONFIG:-configs/croco_v2_vitb_base.py}
WORKDIR=${WORKDIR:-$MOUNT/runs/croco_v2_vitb_base}
DATA=${DATA:-$MOUNT/pairs}
# Compiled programs, which a restart reads instead of compiling again. A gs:// path will do.
CACHE=${CACHE:-$MOUNT/jax_cache}
# On the hosts, relative to the home folder.
REPOSITORY=${REPOSITORY:-mimic_jax}
PYTHON=${PYTHON:-.venv/bin/python}
# Has JAX ask the TPU VM for the other hosts; without it each would train alone.
CLUSTER=${CLUSTER---cluster}

# on WORKER COMMAND: WORKER is a number, or all.
on() {
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker="$1" --command="$2"
}

# What follows is read by the hosts' shells; a path may have spaces.
command="'$PYTHON' -m launch.pretrain $CLUSTER --config='$CONFIG' --workdir='$WORKDIR' --config.data.train='$DATA' \
    --config.run.compile_cache='$CACHE'"
# A host that went down leaves pretrain.pid behind, so the number alone does not tell that the process is ours.
# shellcheck disable=SC2016
runs='grep -qs launch.pretrain "/proc/$(cat pretrain.pid 2>/dev/null)/cmdline"'

case ${1:-} in
install)
    on all "set -e
        test -d '$REPOSITORY' || git clone '$SOURCE' '$REPOSITORY'
        sudo apt-get install --yes --quiet make gcc nfs-common python3-venv
        sudo mkdir -p '$MOUNT'
        mountpoint -q '$MOUNT' || sudo mount -t nfs '$SHARE' '$MOUNT'
        cd '$REPOSITORY'
        git pull --ff-only
        make install
        .venv/bin/python -m pip install --quiet --constraint constraints.txt 'jax[tpu]'"
    ;;
start)
    # With its input and output elsewhere the process outlives the connection. Each waits for the others.
    on all "if $runs; then echo runs already; exit; fi
        cd '$REPOSITORY'
        nohup $command >>~/pretrain.log 2>&1 </dev/null &
        echo \$! >~/pretrain.pid"
    ;;
log)
    on 0 "tail -n 50 -f pretrain.log"
    ;;
stop)
    # All save the same step, and exit.
    on all "if $runs; then kill -TERM \$(cat pretrain.pid); fi"
    ;;
*)
    echo "usage: $0 install|start|log|stop" >&2
    exit 2
    ;;
esac
