#!/usr/bin/env bash
# A real Slurm on this one machine, for tests: munged, slurmctld and slurmd, without systemd and without accounting.
#     eval "$(tests/slurm_cluster.sh start DIR)"    prints and sets SLURM_CONF; DIR gets every file, old state goes
#     tests/slurm_cluster.sh stop DIR               cancels the jobs, ends the daemons that it started
# Partitions: normal (the default; its jobs are requeued when preempted) and urgent (preempts normal).
# Needs no root: jobs are then those of the user who started it. Exit status 3: the Debian packages are not there.
set -euo pipefail

PACKAGES="munge slurmctld slurmd slurm-client"
PATH=$PATH:/usr/sbin:/sbin

usage() {
    echo "usage: $0 start|stop DIR" >&2
    exit 2
}

# The process id of a daemon of this cluster if it runs. A pid file may be stale, so the name must fit too; and in a
# container nobody may collect the dead (state Z).
running() {
    local pid stat
    pid=$(cat "$DIR/$1.pid" 2>/dev/null) || return 1
    stat=$(cat "/proc/$pid/stat" 2>/dev/null) || return 1
    [[ $stat == "$pid ($1) "[!Z]* ]] && echo "$pid"
}

free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))  # below the range that the kernel hands out by itself
        (: </dev/tcp/127.0.0.1/"$port") 2>/dev/null || break
    done
    echo "$port"
}

fail() {
    echo "$0: $*; the last lines of the logs in $DIR:" >&2
    tail -n 8 "$DIR"/*.log >&2 || true
    stop
    exit 1
}

write_conf() {
    local host cpus memory
    host=$(hostname -s)
    cpus=$(nproc)
    ((cpus >= 2)) || cpus=2
    memory=$(awk '/^MemTotal/ {print int($2 / 1024 / 2)}' /proc/meminfo)
    cat >"$DIR/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$DIR/munge.socket
CredType=cred/munge
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.pid
SlurmctldLogFile=$DIR/slurmctld.log
SlurmdLogFile=$DIR/slurmd.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
# A container has no cgroups to hand out.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
JobRequeue=1
# A test waits for each of these.
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=100000,bf_interval=1
KillWait=2
# squeue and scontrol know a job this long after its end.
MinJobAge=600
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Take the numbers below for true, also where the machine has fewer cores.
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=normal Nodes=$host Default=YES PriorityTier=1 MaxTime=INFINITE
PartitionName=urgent Nodes=$host PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE
CONF
    echo "CgroupPlugin=autodetect" >"$DIR/cgroup.conf"  # slurmd reads it, whether it uses cgroups or not
}

start() {
    local daemon missing=""
    for daemon in munged slurmctld slurmd sbatch; do
        command -v "$daemon" >/dev/null || missing+=" $daemon"
    done
    if [[ $missing ]]; then
        echo "$0: slurm is not installed (no$missing): apt-get install $PACKAGES" >&2
        exit 3
    fi
    for daemon in munged slurmctld slurmd; do
        if running "$daemon" >/dev/null; then
            echo "$0: $daemon runs already from $DIR; stop it first" >&2
            exit 1
        fi
    done
    mkdir -p "$DIR"
    rm -rf "$DIR"/{state,spool} "$DIR"/*.{log,pid,seed} "$DIR"/munge.*
    mkdir "$DIR/state" "$DIR/spool"
    (umask 077 && head -c 128 /dev/urandom >"$DIR/munge.key")
    write_conf
    # --force: it dislikes directories that others may write to, which /tmp is.
    munged --force --num-threads=2 --key-file="$DIR/munge.key" --socket="$DIR/munge.socket" \
        --pid-file="$DIR/munged.pid" --log-file="$DIR/munged.log" --seed-file="$DIR/munge.seed" \
        >"$DIR/start.log" 2>&1 || fail "munged did not start"
    slurmctld -c -f "$SLURM_CONF" >>"$DIR/start.log" 2>&1 || fail "slurmctld did not start"
    slurmd -c -f "$SLURM_CONF" >>"$DIR/start.log" 2>&1 || fail "slurmd did not start"
    for _ in {1..150}; do
        if [[ $(sinfo --noheader --format=%T --partition=normal 2>/dev/null) == idle ]]; then
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.2
    done
    fail "the node is not idle after 30 s ($(sinfo --noheader --format='%T %E' 2>&1 | head -1))"
}

stop() {
    local daemon pid job
    # slurmd leaves its jobs running when it ends, so they go first.
    if running slurmctld >/dev/null && running slurmd >/dev/null; then
        for job in $(timeout 10 squeue --noheader --format=%A 2>/dev/null | sort -u); do
            timeout 10 scancel "$job" 2>/dev/null || true
        done
        for _ in {1..50}; do
            [[ $(timeout 10 squeue --noheader --format=%A 2>/dev/null) ]] || break
            sleep 0.2
        done
    fi
    for daemon in slurmctld slurmd munged; do
        pid=$(running "$daemon") || continue
        kill "$pid" 2>/dev/null || true
        for _ in {1..50}; do
            running "$daemon" >/dev/null || break
            sleep 0.1
        done
        if running "$daemon" >/dev/null; then
            kill -KILL "$pid" 2>/dev/null || true
        fi
        rm -f "$DIR/$daemon.pid"
    done
}

[[ $# == 2 ]] || usage
mkdir -p "$2"
DIR=$(realpath "$2")
export SLURM_CONF=$DIR/slurm.conf
case $1 in
    start) start ;;
    stop) stop ;;
    *) usage ;;
esac
