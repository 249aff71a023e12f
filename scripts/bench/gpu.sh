#!/usr/bin/env bash
# Everything that a machine with a GPU can say, within 8 minutes: tests on the GPU, and the benchmarks at two shapes.
#
#   bash scripts/bench/gpu.sh [--device cuda|cpu] [FOLDER]
#
# FOLDER (by default a new one) gets a JSON document and a log of each part, parts.tsv, and table.md for
# docs/benchmarks.md. --device cpu runs the same at tiny sizes, to show that the script works. PYTHON names the
# interpreter. Needs the project's dependencies and pytest, and no network. The exit code is 1 if a part failed.
set -u
cd "$(dirname "$0")/../.."
export HF_HUB_OFFLINE=1 PYTHONPATH="$PWD" TOKENIZERS_PARALLELISM=false

device=cuda folder=
while [ $# -gt 0 ]; do
    case $1 in
        --device) device=${2:?--device needs cuda or cpu}; shift 2 ;;
        *) folder=$1; shift ;;
    esac
done
case $device in
    cuda) size=gpu ;;
    cpu) size=tiny ;;
    *) echo "--device $device: expected cuda or cpu" >&2; exit 2 ;;
esac
python=${PYTHON:-python}
folder=${folder:-$(mktemp -d "${TMPDIR:-/tmp}/gpu-bench-XXXXXX")}
mkdir -p "$folder" || exit 2
: > "$folder/parts.tsv"

# Each part has the time that parts before it left over besides its own seconds, and 5 more to end when it is stopped.
due=0 failed=0
part() { # NAME SECONDS OUTPUT COMMAND...
    local name=$1 output=$3 started=$SECONDS code
    due=$((due + $2))
    shift 3
    timeout --kill-after=5 $((due > SECONDS ? due - SECONDS : 1)) "$@" > "$folder/$output" 2> "$folder/$name.log"
    code=$?
    printf '%s\t%s\t%s\n' "$name" "$code" $((SECONDS - started)) | tee -a "$folder/parts.tsv" >&2
    [ $code -eq 0 ] || failed=1
}
bench() { # SECONDS NAME [SHAPE]
    part "$2${3:+-$3}" "$1" "$2${3:+-$3}.json" "$python" -m scripts.bench "$2" --json --device $device --size $size \
        ${3:+--shape $3} --dtype bfloat16 --rounds 3
}

part tests 80 tests.txt "$python" -m pytest -q -m gpu -p no:cacheprovider tests/student/test_on_a_gpu.py \
    tests/pipeline/teacher tests/scripts/bench
bench 15 ceilings
bench 30 precompute 124m
bench 65 precompute xl
bench 15 loss 124m
bench 15 loss xl
bench 30 step 124m
bench 35 generate 124m
bench 65 generate xl
bench 45 compiled 124m
bench 70 step xl # last, with all the time that is left: the student is made and checked on the CPU
"$python" -m scripts.bench.gpu "$folder" | tee "$folder/table.md"
[ "${PIPESTATUS[0]}" -eq 0 ] || failed=1
echo "in $folder" >&2
exit $failed
