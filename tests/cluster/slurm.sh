#!/usr/bin/env bash
# A Slurm of one node on this machine, as root, without systemd:  slurm.sh start DIR | slurm.sh stop DIR
# Needs slurmctld, slurmd, slurm-client and munge (Debian's packages); "slurm.sh install" has apt-get fetch them.
# DIR/slurm.conf is what SLURM_CONF must name. It says it has four cores, and waits that last minutes elsewhere
# last seconds.
set -euo pipefail
case ${1-} in
install)
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq -y --no-install-recommends slurmctld slurmd slurm-client munge
    ;;
start)
    dir=$(realpath "$2") host=$(hostname -s)
    mkdir -p "$dir"/{state,spool,munge}
    chmod 755 "$dir"
    chmod 700 "$dir/munge"
    (umask 077 && head -c 1024 /dev/urandom >"$dir/munge/key")
    munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
        --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"
    cat >"$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket,cred_expire=5
CredType=cred/munge
SlurmctldPort=$((20000 + RANDOM % 10000))
SlurmdPort=$((30000 + RANDOM % 2000))
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=10
MinJobAge=30
InactiveLimit=0
OverTimeLimit=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 Sockets=4 CoresPerSocket=1 ThreadsPerCore=1 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=$host MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
    export SLURM_CONF=$dir/slurm.conf
    slurmctld -c
    slurmd -c
    for _ in $(seq 300); do
        if [ "$(sinfo --noheader --format=%T --partition=main 2>/dev/null)" = idle ]; then
            printf 'export SLURM_CONF=%q\n' "$SLURM_CONF"
            exit 0
        fi
        sleep 0.1
    done
    tail -n 20 "$dir"/slurmctld.log "$dir"/slurmd.log >&2
    exit 1
    ;;
stop)
    dir=$(realpath "$2")
    for file in slurmd.pid slurmctld.pid munge/pid; do
        pid=$(cat "$dir/$file" 2>/dev/null) || continue
        kill "$pid" 2>/dev/null || continue
        for _ in $(seq 100); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
    done
    ;;
*)
    sed -n 2,4p "$0" >&2
    exit 2
    ;;
esac
