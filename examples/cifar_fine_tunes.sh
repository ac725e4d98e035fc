#!/usr/bin/env bash
# The real run: teachers of CIFAR-10 that share a base, fused into one student, with baselines and controls.
#
#   base       vgg11_bn_cifar at a quarter of its width, trained on classes 0-49 of CIFAR-100
#   task-..    14 small zoos on ten of the classes 50-84 of CIFAR-100: what the universal generator learns from
#   cifar10-split   10 teachers of CIFAR-10, each with its own Dirichlet-0.3 share: only for testing
#   cifar10-same    20 teachers that saw all images, recipes varied: 0-9 train the specialised generator, 10-19 test it
#   tables     students, baselines and controls on the 10,000 test images, K = 3 and 6, five subsets of teachers
#
# At most an hour on two cores. A stage is skipped when its output is there; an interrupted one goes on.
# Usage: examples/cifar_fine_tunes.sh [WORK_FOLDER]     (default runs/cifar_fine_tunes; DATA=../shared/data)
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${1:-runs/cifar_fine_tunes}
DATA=${DATA:-../shared/data}
NET=(--arch vgg11_bn_cifar --arch-arg width=0.25)
C100=(--data "$DATA/cifar100" --label-column fine_label)
C10=(--data "$DATA/cifar10")
BASE=$RUNS/base/teacher-00.safetensors
for set in cifar10 cifar100; do
    [ -d "$DATA/$set" ] || { echo "no dataset at $DATA/$set; set DATA to the folder that holds cifar10 and cifar100" >&2; exit 1; }
done
mkdir -p "$RUNS"

# Run a stage unless its output is there, with its own log; note how long it took.
stage() { # OUTPUT COMMAND...
    local output=$1 started=$SECONDS
    shift
    [ -e "$output" ] && return
    echo "$(basename "$(dirname "$output")")/$(basename "$output") ..."
    "$@" >> "$RUNS/log.txt" 2>&1 || { tail -n 5 "$RUNS/log.txt" >&2; exit 1; }
    echo "$output $((SECONDS - started))" >> "$RUNS/seconds.txt"
}

train() { wfcli train-teachers "${NET[@]}" "$@"; }

# Ten of the classes 50-84, and a recipe, for each task: varied, so that the generator meets teachers that moved little and much.
tasks() {
    local number=0 classes epochs lr shares
    while read -r classes epochs lr shares; do
        stage "$RUNS/task-$(printf %02d $number)/zoo.json" train "${C100[@]}" --classes "$classes" --count 6 \
            --init "$BASE" --epochs "$epochs" --lr "$lr" --seed $number -o "$RUNS/task-$(printf %02d $number)" $shares
        number=$((number + 1))
    done <<'TASKS'
52,55,59,60,63,66,70,74,79,83 12 0.05 --shares dirichlet --concentration 0.3
50,53,56,61,64,67,71,75,78,81 8 0.05 --shares dirichlet --concentration 0.3
51,54,58,62,65,69,72,76,80,84 20 0.03 --shares dirichlet --concentration 0.3
50,55,57,62,68,70,73,77,80,82 12 0.05 --shares dirichlet --concentration 0.5
51,52,56,60,64,68,71,74,78,84 16 0.03 --shares dirichlet --concentration 0.2
53,57,59,63,65,69,73,76,79,82 12 0.08 --shares dirichlet --concentration 0.3
54,58,61,66,67,72,75,77,81,83 6 0.05 --shares dirichlet --concentration 0.3
50,52,58,61,65,70,74,77,82,84 12 0.05 --shares dirichlet --concentration 1.0
51,55,56,63,67,68,72,78,79,80 24 0.05 --shares dirichlet --concentration 0.3
53,54,57,60,62,66,69,71,76,83 12 0.02 --shares dirichlet --concentration 0.3
50,54,59,64,65,68,73,75,80,81 10 0.05 --shares dirichlet --concentration 0.1
52,56,57,58,67,70,76,77,79,84 12 0.05 --shares dirichlet --concentration 0.3
51,53,61,62,66,72,74,78,82,83 4 0.05 --shares same
55,60,63,64,69,71,73,75,81,84 12 0.05 --shares dirichlet --concentration 0.3
TASKS
}

universal() {
    for seed in 0 1 2; do
        stage "$RUNS/universal-$seed/model.safetensors" wfcli train-generator $(printf -- '--zoo %s ' "$RUNS"/task-*) \
            --preset universal --steps 800 --seed $seed --resume -o "$RUNS/universal-$seed"
    done
}

specialised() {
    for seed in 0 1 2; do
        stage "$RUNS/specialised-$seed/model.safetensors" wfcli train-generator --zoo "$RUNS/cifar10-same" --zoo-teachers 0-9 \
            --preset specialised --steps 600 --seed $seed --resume -o "$RUNS/specialised-$seed"
    done
}

tables() { # KNOWLEDGE
    stage "$RUNS/$1.json" python examples/cifar_table.py --runs "$RUNS" --data "$DATA/cifar10" --knowledge "$1" --output "$RUNS/$1.json"
}

stage "$BASE" train "${C100[@]}" --classes 0-49 --count 1 --same-recipe --epochs 30 --lr 0.1 -o "$RUNS/base"

# Two lanes of one thread each use two cores better than one job with two threads.
export OMP_NUM_THREADS=1
(
    stage "$RUNS/cifar10-same/zoo.json" train "${C10[@]}" --count 20 --init "$BASE" --epochs 2 --seed 200 -o "$RUNS/cifar10-same"
    specialised
    tables same
) &
lane=$!
tasks
stage "$RUNS/cifar10-split/zoo.json" train "${C10[@]}" --count 10 --init "$BASE" --epochs 8 --seed 100 \
    --shares dirichlet --concentration 0.3 -o "$RUNS/cifar10-split"
universal
tables split
wait "$lane"
unset OMP_NUM_THREADS

# The commands a user would type, on the first three silo teachers.
SILOS="$RUNS/cifar10-split/teacher-0[0-2].safetensors"
stage "$RUNS/student.safetensors" wfcli fuse "$SILOS" "${NET[@]}" "${C10[@]}" --generator "$RUNS/universal-0" -o "$RUNS/student.safetensors"
stage "$RUNS/tuned.safetensors" wfcli finetune "$RUNS/student.safetensors" --teachers "$SILOS" "${NET[@]}" "${C10[@]}" --steps 100 \
    --resume -o "$RUNS/tuned.safetensors"
wfcli eval "$RUNS/student.safetensors" "$RUNS/tuned.safetensors" --teachers "$SILOS" "${NET[@]}" "${C10[@]}"
cat "$RUNS/split.md" "$RUNS/same.md"
awk '{ sum += $2 } END { printf "%d stages, %.1f minutes in all (two stages at a time but for the first and the last)\n", NR, sum / 60 }' "$RUNS/seconds.txt"
