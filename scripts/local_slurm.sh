#!/usr/bin/env bash
# A private Slurm of one node on the loopback interface, for trying the launcher and for the tests.
#
#   scripts/local_slurm.sh up      start it (root; Debian: apt-get install slurmctld slurmd slurm-client munge)
#   scripts/local_slurm.sh env     print what points the Slurm commands at it: eval "$(scripts/local_slurm.sh env)"
#   scripts/local_slurm.sh status  nodes and jobs
#   scripts/local_slurm.sh down    stop it and remove its folder
#
# Its key, socket, configuration, state and logs are in one folder, LOCAL_SLURM (default /tmp/et-slurm); a Slurm of the
# machine's own is not touched. It has no accounting database.
set -euo pipefail

folder=${LOCAL_SLURM:-/tmp/et-slurm}
export SLURM_CONF=$folder/slurm.conf
export PATH=$PATH:/usr/sbin

configure() {
    local host cores
    host=$(hostname -s)
    cores=$(nproc)
    cat >"$folder/slurm.conf" <<CONF
ClusterName=et-local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${LOCAL_SLURM_PORT:-26817}
SlurmdPort=$((${LOCAL_SLURM_PORT:-26817} + 1))
SlurmUser=root
SlurmdUser=root
# A requeued job may start again once the credential of its former life has expired.
AuthInfo=socket=$folder/munge.socket,cred_expire=15
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_min_interval=500000,batch_sched_delay=0
JobRequeue=1
KillWait=5
MinJobAge=300
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores Boards=1 SocketsPerBoard=1 CoresPerSocket=$cores ThreadsPerCore=1 State=UNKNOWN
PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
}

up() {
    # Without a configuration scontrol looks for one on the network, for minutes.
    if [ -e "$SLURM_CONF" ] && scontrol ping 2>/dev/null | grep -q UP; then
        echo "already up: $folder"
        return
    fi
    for program in munged slurmctld slurmd sbatch; do
        command -v "$program" >/dev/null || {
            echo "there is no $program: apt-get install slurmctld slurmd slurm-client munge" >&2
            exit 1
        }
    done
    mkdir -p "$folder/state" "$folder/spool" "$folder/munge"
    chmod 755 "$folder" && chmod 700 "$folder/munge"
    [ -e "$folder/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
    # --force: munged would refuse a socket below /tmp, which everybody may write; the folder itself is ours alone.
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge.socket" --pid-file="$folder/munge.pid" \
        --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" --num-threads=2
    configure
    slurmctld -i
    slurmd
    for _ in $(seq 60); do
        if [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ]; then
            echo "up: $folder ($(nproc) cores). For the shell: eval \"\$($0 env)\""
            return
        fi
        sleep 0.5
    done
    echo "the node did not come up; see $folder/slurmctld.log and $folder/slurmd.log" >&2
    tail -n 5 "$folder"/slurmctld.log "$folder"/slurmd.log >&2 || true
    exit 1
}

down() {
    if [ -e "$folder/slurm.conf" ]; then
        scancel --user="$(id -un)" 2>/dev/null || true
        sleep 1
    fi
    for name in slurmd slurmctld munge; do
        [ -e "$folder/$name.pid" ] || continue
        local pid
        pid=$(cat "$folder/$name.pid")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 40); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.25
        done
        kill -9 "$pid" 2>/dev/null || true
    done
    rm -rf "$folder"
    echo "down"
}

case "${1:-}" in
    up) up ;;
    down) down ;;
    env) echo "export SLURM_CONF=$folder/slurm.conf" ;;
    status) sinfo && squeue ;;
    *)
        sed -n '2,11s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
esac
