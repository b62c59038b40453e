#!/usr/bin/env bash
# Tests and measurements that need a GPU, in order of worth, each with a time limit of its own.
#
#   benchmarks/gpu.sh FOLDER [PIECE[=SECONDS] ...]
#
# Pieces: tests parity pcfg steps saving head compiled multistep; if none is named, all but the last
# two, whose limits sum to 860 seconds. Each writes FOLDER/PIECE.log as it goes. `parity` and `pcfg`
# are recipes of scale paper with one seed; they pack records and reports, without weights, into
# FOLDER/PIECE.tgz every ten seconds. `steps` and `compiled` append to FOLDER/gpu.jsonl, `head` to
# FOLDER/heads.jsonl. A piece that reaches its limit is stopped, and the next one begins.
#
# PYTHON names the interpreter, TASKS the tasks of gpu.py; PARITY, PCFG, STEPS, HEAD, SAVING and
# MULTISTEP hold options in the place of the usual ones.
set -u
here=$(cd "$(dirname "$0")" && pwd) || exit 1
cd "$here/.." || exit 1
[ $# -ge 1 ] || { sed -n '2,15s/^# \{0,1\}//p' "$here/gpu.sh"; exit 2; }
folder=$1; shift
mkdir -p "$folder" && folder=$(cd "$folder" && pwd) || exit 1
[ $# -ge 1 ] || set -- tests=100 parity=260 pcfg=300 steps=90 saving=60 head=50

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

packed() {  # packed NAME: packs what the runs of a recipe have written so far.
  tar czf "$folder/$1.part" -C "$runs" --exclude='*.safetensors' --exclude=checkpoints . 2>/dev/null
  mv "$folder/$1.part" "$folder/$1.tgz"
}

reproduced() {  # reproduced NAME RECIPE OPTION ...
  local name=$1; shift
  runs=$(mktemp -d)
  "$python" -m curricle reproduce "$1" --scale paper --output-dir "$runs/$name" "${@:2}" &
  local run=$!
  # The signal that ends this piece ends the runs as well, which leave their records.
  trap 'wait $run; packed '"$name"'; exit 143' TERM
  while kill -0 $run 2>/dev/null; do sleep 10 & wait $!; packed "$name"; done
  wait $run
  local code=$?
  packed "$name"
  return $code
}

# shellcheck disable=SC2086
piece() {  # piece NAME SECONDS
  case $1 in
    tests) "$python" -m pytest -q -n 0 --no-cov -p no:cacheprovider -p no:randomly \
             tests/integration/test_cuda.py tests/integration/test_devices.py \
             tests/integration/test_fused_losses.py tests/unit/objectives/test_fused_kernels.py ;;
    parity) reproduced parity parity-mlp ${PARITY:---set seeds=[0] --jobs 4} ;;
    pcfg) reproduced pcfg pcfg-mlm ${PCFG:---panels layers --set seeds=[0] --jobs 3} ;;
    steps) measured "$2" plain where prefetch trainer ;;
    saving) "$python" benchmarks/async_saving.py ${SAVING:---device cuda} ;;
    head) "$python" benchmarks/gpu_heads.py --out "$folder/heads.jsonl" \
            ${HEAD:---rows ^(products|chunked|kl_div|plain)} ;;
    compiled) measured "$2" compiled ;;
    multistep) "$python" benchmarks/multistep.py ${MULTISTEP:---device cuda --quick} ;;
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
