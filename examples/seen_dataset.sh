#!/usr/bin/env bash
# The paper's own claim: fine-tunes of one dataset, all on the same images, and a generator that has seen this dataset and
# other fine-tunes of it, but not these. CIFAR-10 from a base of CIFAR-100, and CIFAR-100 from a base of CIFAR-10; the
# Transformer on CIFAR-10 alone.
#
#   zoo         a base, and 22 fine-tunes of it: generators learn from 0-11, 12-21 are only for testing
#   generators  specialised (mixing and prior), and the prior alone
#   views       eight augmented copies of each image
#   parts       the mixing alone; on from the shipped generator; prior and mixing in turn; half as many teachers; more augmented copies; a larger generator;
#               the paper's raw rows, and these without each of its mechanisms
#   tables      students, baselines and controls, K = 3 and 6, five sets of teachers
#
# A stage is skipped when its output is there; an interrupted one goes on.
# Usage: examples/seen_dataset.sh [WORK_FOLDER [STEP]]     (default runs/seen; DATA=../shared/data)
# A step is one of the functions below with its arguments: zoo vgg cifar10, generators vgg cifar10 0, tables vgg cifar100.
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${1:-runs/seen}
DATA=${DATA:-../shared/data}
shift || true
source examples/stages.sh
need cifar10 cifar100

images() { # DATASET
    case $1 in
        cifar10) echo --data "$DATA/cifar10" ;;
        cifar100) echo --data "$DATA/cifar100" --label-column fine_label ;;
    esac
}

other() { case $1 in cifar10) echo cifar100 ;; cifar100) echo cifar10 ;; esac }

# Rates of base and teachers: such that the teachers stay in one basin.
zoo() { # NET DATASET
    local base=$RUNS/$1-$2/base rate=0.1 rates=0.03 epochs=15 some=()
    [ "$1" = vgg ] || { rate=0.002 rates=0.0006 epochs=8 some=(--images-per-teacher 5000); } # takes ten times as long
    stage "$base/zoo.json" wfcli train-teachers $(net "$1") $(images "$(other "$2")") --count 1 --same-recipe --epochs "$epochs" --lr "$rate" -o "$base"
    stage "$RUNS/$1-$2/teachers/zoo.json" wfcli train-teachers $(net "$1") $(images "$2") --init "$base/teacher-00.safetensors" \
        --count 22 --epochs 6 --lr "$rates" --seed 700 "${some[@]}" -o "$RUNS/$1-$2/teachers"
}

one() { # NET DATASET NAME SEED STEPS OPTIONS...
    local place=$RUNS/$1-$2 name=$3-$4 seed=$4 steps=$5
    shift 5
    stage "$place/generators/$name/model.safetensors" wfcli train-generator --zoo "$place/teachers" --zoo-teachers 0-11 \
        --steps "$steps" --batch-size 128 --seed "$seed" --resume "$@" -o "$place/generators/$name"
}

generators() { # NET DATASET SEED
    one "$1" "$2" specialised "$3" 800 --preset specialised
    one "$1" "$2" prior "$3" 800 --preset specialised --train prior
}

# Eight augmented copies of an image: more seeds of it.
views() { # NET DATASET SEED
    one "$1" "$2" views "$3" 1200 --preset specialised --views 8
}

# What may make the teachers' weights add to the prior, and what the paper has.
parts() { # NET DATASET
    local place=$RUNS/$1-$2/generators without
    one "$1" "$2" universal 0 800
    one "$1" "$2" turn-prior 0 800 --preset specialised --init "$place/universal-0" --train prior
    one "$1" "$2" turn-mixing 0 400 --preset specialised --init "$place/turn-prior-0" --train mixing
    one "$1" "$2" turn-both 0 400 --preset specialised --init "$place/turn-mixing-0"
    one "$1" "$2" few 0 800 --preset specialised --zoo-teachers 0-5
    views "$1" "$2" 0
    one "$1" "$2" shipped 0 800 --preset specialised --init pretrained/universal
    one "$1" "$2" large 0 800 --preset specialised --width 64 --blocks 4
    one "$1" "$2" weightformer 0 800 --preset weightformer
    for without in flow mask; do one "$1" "$2" "weightformer-no-$without" 0 800 --preset weightformer "--no-$without"; done
    one "$1" "$2" weightformer-no-shift 0 800 --preset weightformer --shift-weight 0
}

tables() { # NET DATASET: goes on where it stopped, and adds what new generators bring
    local place=$RUNS/$1-$2 count
    if [ "$1" = vit ]; then # a step takes ten times as long: two processes, and no training from scratch
        for count in 3 6; do
            run "$place-$count.json" python examples/seen_table.py --place "$place" --output "$place-$count.json" --counts "$count" \
                --starts soup "best single" "generator specialised-0" &
        done
        wait
        run "$place.json" python examples/seen_table.py --place "$place" --output "$place.json" \
            --join "$place-3.json" "$place-6.json" --starts soup "best single" "generator specialised-0"
    else
        run "$place.json" python examples/seen_table.py --place "$place" --output "$place.json"
    fi
}

everything() {
    trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
    lane vgg cifar10 &
    lane vgg cifar100
    wait $!
    lane vit cifar10
}

lane() { # NET DATASET
    zoo "$@"
    for seed in 0 1 2; do generators "$@" "$seed"; done
    [ "$1" = vit ] || parts "$@"
    [ "$2" = cifar100 ] || { views "$@" 1; views "$@" 2; }
    tables "$@"
}

export OMP_NUM_THREADS=1
if [ $# -gt 0 ]; then "$@"; else everything; fi
