#!/usr/bin/env bash
# Tests and measurements that need a GPU, in order of worth, each with a time limit of its own.
#
#   benchmarks/gpu.sh FOLDER [PIECE[=SECONDS] ...]
#
# Pieces: tests steps head multistep compiled scale; all of them if none is named. Each writes
# FOLDER/PIECE.log as it goes; `steps` and `compiled` append their results to FOLDER/gpu.jsonl, and
# `scale` packs records and reports of its runs, without weights, into FOLDER/scale.tgz every ten
# seconds. A piece that reaches its limit is stopped, and the next one begins.
#
# PYTHON names the interpreter; TASKS the tasks of gpu.py; HEAD, SCALE, STEPS further options.
set -u
here=$(cd "$(dirname "$0")" && pwd) || exit 1
cd "$here/.." || exit 1
[ $# -ge 1 ] || { sed -n '2,12s/^# \{0,1\}//p' "$here/gpu.sh"; exit 2; }
folder=$1; shift
mkdir -p "$folder" && folder=$(cd "$folder" && pwd) || exit 1
[ $# -ge 1 ] || set -- tests=180 steps=400 head=300 multistep=240 compiled=400 scale=540

export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TOKENIZERS_PARALLELISM=false
python=${PYTHON:-python3}

measured() {  # measured SECONDS GROUP ...
  local seconds=$1; shift
  # The script ends by itself before the limit of the piece.
  # shellcheck disable=SC2086
  "$python" benchmarks/gpu.py --output-dir "$folder" --seconds $((seconds > 40 ? seconds - 20 : 20)) \
    ${TASKS:+--tasks $TASKS} ${STEPS:-} --groups "$@"
}

packed() {  # Packs what the runs have written so far.
  tar czf "$runs.part" -C "$runs" --exclude='*.safetensors' --exclude=checkpoints . 2>/dev/null
  mv "$runs.part" "$folder/scale.tgz"
}

scaled() {
  runs=$(mktemp -d)
  # shellcheck disable=SC2086
  "$python" -m curricle reproduce parity-mlp --scale paper --set engine.compiled_steps=25 \
    --output-dir "$runs" ${SCALE:---jobs 12} &
  local run=$!
  # The runs end by the signal that ends this piece, and leave their records.
  trap 'kill -TERM $run 2>/dev/null; wait $run; packed; exit 143' TERM
  while kill -0 $run 2>/dev/null; do sleep 10 & wait $!; packed; done
  wait $run
  local code=$?
  packed
  return $code
}

piece() {  # piece NAME SECONDS
  case $1 in
    tests) "$python" -m pytest -q -n 0 --no-cov -p no:cacheprovider -p no:randomly \
             tests/integration/test_cuda.py tests/integration/test_devices.py \
             tests/integration/test_fused_losses.py tests/unit/objectives/test_fused_kernels.py ;;
    steps) measured "$2" plain where prefetch trainer ;;
    compiled) measured "$2" compiled ;;
    # shellcheck disable=SC2086
    head) "$python" benchmarks/gpu_heads.py --out "$folder/heads.jsonl" \
            ${HEAD:---rows ^(products|chunked|kl_div|plain)} ;;
    multistep) "$python" benchmarks/multistep.py --device cuda --quick ;;
    scale) scaled ;;
    *) echo "unknown piece: $1"; return 2 ;;
  esac
}

if [ "${1:-}" = --piece ]; then  # The script calls itself, so that `timeout` can end a piece.
  piece "$2" "$3"
  exit $?
fi

for each in "$@"; do
  name=${each%%=*} limit=540
  [ "$name" = "$each" ] || limit=${each#*=}
  started=$(date +%s)
  timeout --signal TERM --kill-after 15 "$limit" \
    bash "$here/gpu.sh" "$folder" --piece "$name" "$limit" >"$folder/$name.log" 2>&1
  code=$?
  echo "== $name: exit code $code after $(($(date +%s) - started)) s"
  tail -n "${LINES_SHOWN:-40}" "$folder/$name.log"
done
