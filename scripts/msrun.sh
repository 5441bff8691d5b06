#!/usr/bin/env bash
# Runs a command of ospnext_ms in several processes, one a device:
#
#   bash scripts/msrun.sh COMMAND CONFIG NODES DEVICES [options of the command]
#   bash scripts/msrun.sh train yaml_configs/train/tiny.yaml 1 4
#   bash scripts/msrun.sh generate yaml_configs/generate/14b.yaml 1 8 --set parallel_config.skiparse_parallel=4
#
# NODES hosts with DEVICES processes each. With several hosts start it on every one of them, with NODE_RANK (0, 1, ...)
# and MASTER_ADDR (a name or address of host 0) in the environment. MASTER_PORT (8118; on one host a free one) and
# MSRUN_LOGS (output/msrun: one log a process) can be set too. Paths, those in CONFIG too, are relative to the current
# folder. It ends when all processes of this host have ended; if one fails, all are killed and the exit status is not 0.
# SIGTERM and SIGINT are handed on: training finishes its step, saves, and the exit status is 143 or 130.
set -euo pipefail
if [ $# -lt 4 ]; then
  sed -n '2,/^set/{/^#/p}' "$0" >&2
  exit 2
fi
# "vbench generate" is two words.
read -ra command <<<"$1"
config=$2 nodes=$3 devices=$4
shift 4
where=()
if [ "$nodes" -gt 1 ]; then
  where=(--node_rank="${NODE_RANK:?is this host 0, 1, ...?}" --master_addr="${MASTER_ADDR:?which is host 0?}")
fi
root=$(cd "$(dirname "$0")/.." && pwd)
export PATH="${OSPNEXT_VENV:-$root/.venv}/bin:$PATH" PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
# Virtual memory: what one network leaves in small pieces serves the next, whose tensors have other sizes.
export MS_ALLOC_CONF="${MS_ALLOC_CONF:-enable_vmm:True}"
# Processes compile their graphs at different speeds, and the first exchange waits for the slowest: 120 s, HCCL's own
# limit, is less than a 14B takes.
export HCCL_CONNECT_TIMEOUT="${HCCL_CONNECT_TIMEOUT:-1800}"
# Port 0 asks the system for a free one: two runs on a host would otherwise wait for one another's.
port=${MASTER_PORT:-$([ "$nodes" -eq 1 ] && echo 0 || echo 8118)}
if [ ! -f "$config" ]; then
  echo "error: no configuration file $config (current folder $PWD)" >&2
  exit 2
fi
# The host that the others look for: with the port taken, msrun would wait for more than a minute.
if [ "$nodes" -eq 1 ] || [ "$NODE_RANK" -eq 0 ]; then
  # Without SO_REUSEADDR, as MindSpore binds: to it a port that a run has just left is taken for a minute.
  if ! answer=$(python -c 'if True:
    import socket, sys
    with socket.socket() as listener:
        listener.bind(("", int(sys.argv[1])))
        print(listener.getsockname()[1])' "$port" 2>&1); then
    echo "error: MASTER_PORT $port cannot be used (${answer##*$'\n'}); set it to a free port" >&2
    exit 2
  fi
  port=$answer
fi

# Of its own session: msrun answers a signal by killing its processes, which are to save first.
setsid msrun --worker_num=$((nodes * devices)) --local_worker_num="$devices" --master_port="$port" \
  ${where[@]+"${where[@]}"} --join=True --log_dir="${MSRUN_LOGS:-output/msrun}" \
  python -m ospnext_ms "${command[@]}" --config "$config" "$@" &
job=$! asked=

hand_on() {
  asked=$1
  local pid
  for pid in $(cat "/proc/$job/task/$job/children"); do
    if tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -qx 'MS_ROLE=MS_WORKER'; then
      kill -"$asked" "$pid" 2>/dev/null || true
    fi
  done
}
trap 'hand_on TERM' TERM
trap 'hand_on INT' INT
while :; do
  status=0
  wait "$job" || status=$?
  # A signal ends `wait` before the job has ended.
  kill -0 "$job" 2>/dev/null || break
done
case $asked in
  TERM) exit 143 ;;
  INT) exit 130 ;;
esac
exit "$status"
