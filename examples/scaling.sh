#!/usr/bin/env bash
# What a generator gains with more tasks to learn from, more teachers of each, and more parameters: on the VGG's silos of
# silo_teachers.sh (which has to be run first), all of a thousand steps. One thing varies at a time: the rest is ten tasks,
# six teachers, width 32 and two blocks. The best step is chosen on task-05 and task-11, of three tasks on task-11 alone;
# where there are fewer teachers to learn from, there are as few to choose it on.
#
# Seed 0 has been run: an hour and a half on one core. A stage is skipped when its output is there; an interrupted one goes on.
# Usage: examples/scaling.sh [WORK_FOLDER [STEP]]     (default runs/silos)
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${1:-runs/silos}
shift || true
[ -e "$RUNS/vgg/test-02/zoo.json" ] || { echo "no zoos at $RUNS/vgg: run examples/silo_teachers.sh first" >&2; exit 1; }
source examples/stages.sh

sized() { # NAME SEED ZOOS OPTIONS...
    local name=$1 seed=$2 zoo zoos=()
    for zoo in $3; do zoos+=(--zoo "$RUNS/vgg/task-$zoo"); done
    shift 3
    stage "$RUNS/scaling/$name-$seed/model.safetensors" wfcli train-generator "${zoos[@]}" --steps 1000 --batch-size 128 \
        --seed "$seed" --resume "$@" -o "$RUNS/scaling/$name-$seed"
}

# Of four zoos and more the sixth and the last are held out.
generators() { # SEED
    local all="00 01 02 03 04 05 06 07 08 09 10 11" size
    sized tasks-10 "$1" "$all"
    sized tasks-3 "$1" "00 01 02 11"
    sized tasks-5 "$1" "00 01 02 03 04 05 11"
    sized tasks-7 "$1" "00 01 02 03 04 05 06 07 11"
    sized teachers-2 "$1" "$all" --zoo-teachers 0-1
    sized teachers-4 "$1" "$all" --zoo-teachers 0-3
    sized size-8x1 "$1" "$all" --width 8 --blocks 1
    sized size-16x2 "$1" "$all" --width 16
    sized size-64x2 "$1" "$all" --width 64
    sized size-64x4 "$1" "$all" --width 64 --blocks 4
}

table() {
    run "$RUNS/scaling.json" python examples/scaling_table.py --runs "$RUNS" --output "$RUNS/scaling.json"
}

everything() {
    trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
    generators 1 &
    generators 0
    wait $!
    table
}

export OMP_NUM_THREADS=1
if [ $# -gt 0 ]; then "$@"; else everything; fi
