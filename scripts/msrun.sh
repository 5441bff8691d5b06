#!/usr/bin/env bash
# Runs a command of ospnext_ms in several processes, one a device:
#
#   bash scripts/msrun.sh COMMAND CONFIG NODES DEVICES [options of the command]
#   bash scripts/msrun.sh train yaml_configs/train/tiny.yaml 1 4
#   bash scripts/msrun.sh generate yaml_configs/generate/14b.yaml 1 8 --set parallel_config.skiparse_parallel=4
#
# NODES hosts with DEVICES processes each. With several hosts start it on every one of them, with NODE_RANK (0, 1, ...)
# and MASTER_ADDR (a name or address of host 0) in the environment. MASTER_PORT (8118) and MSRUN_LOGS (output/msrun: one
# log a process) can be set too. It ends when all processes of this host have ended; if one fails, all are killed and
# the exit status is not 0.
set -euo pipefail
if [ $# -lt 4 ]; then
  sed -n '2,/^set/{/^#/p}' "$0" >&2
  exit 2
fi
command=$1 config=$2 nodes=$3 devices=$4
shift 4
where=()
if [ "$nodes" -gt 1 ]; then
  where=(--node_rank="${NODE_RANK:?is this host 0, 1, ...?}" --master_addr="${MASTER_ADDR:?which is host 0?}")
fi
cd "$(dirname "$0")/.."
# Virtual memory: what one network leaves in small pieces serves the next, whose tensors have other sizes.
export MS_ALLOC_CONF="${MS_ALLOC_CONF:-enable_vmm:True}"
# Processes compile their graphs at different speeds, and the first exchange waits for the slowest: 120 s, HCCL's own
# limit, is less than a 14B takes.
export HCCL_CONNECT_TIMEOUT="${HCCL_CONNECT_TIMEOUT:-1800}"
export PATH="${OSPNEXT_VENV:-$PWD/.venv}/bin:$PATH"
exec msrun --worker_num=$((nodes * devices)) --local_worker_num="$devices" --master_port="${MASTER_PORT:-8118}" \
  ${where[@]+"${where[@]}"} --join=True --log_dir="${MSRUN_LOGS:-output/msrun}" \
  python -m ospnext_ms "$command" --config "$config" "$@"
