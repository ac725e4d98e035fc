#!/usr/bin/env bash
# Teachers that all saw the same images of a new dataset, in most zoos some of them bad: for three kinds of nets, on the
# bases and beside the zoos of silo_teachers.sh (which has to be run first).
#
#   zoos        examples/zoos/*_same.toml: training zoos with misleading recipes; test zoos of eight sound and eight bad
#               teachers, three tasks of unseen classes and CIFAR-10
#   generators  for all kinds of nets: those of silo_teachers.sh go on, on silos and the same data; for the VGG alone:
#               trained on the same data alone, and on both
#   mechanisms  the paper's generator, and it without each of its mechanisms, on the VGG's teachers of the same data
#   tables      sets of 2, 4 and 8 teachers, sound ones, any, and with so many bad ones: students, baselines, controls
#
# About four hours on two cores. A stage is skipped when its output is there; an interrupted one goes on. Afterwards the
# tables of silo_teachers.sh once more: they take in the generators of all kinds of data.
# Usage: examples/same_teachers.sh [WORK_FOLDER [STEP]]     (default runs/silos; DATA=../shared/data)
# A step is one of the functions below with its arguments: zoos vit, generators 0, tables resnet.
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${1:-runs/silos}
DATA=${DATA:-../shared/data}
shift || true
[ -e "$RUNS/generators/all-2/model.safetensors" ] || { echo "no $RUNS/generators/all-2: run examples/silo_teachers.sh first" >&2; exit 1; }
source examples/stages.sh
need cifar10 cifar100

zoos() { # KIND
    stage "$RUNS/$1/same-test-02/zoo.json" wfcli train-teachers --zoo-recipe "examples/zoos/$1_same.toml" --data "$DATA/cifar100" -o "$RUNS/$1"
    same_of_cifar10 "$1"
}

generators() { # SEED
    generator both "$1" 2400 "vgg resnet vit" "task same-task" --init "$RUNS/generators/all-$1"
    [ "$1" = 0 ] || return 0
    generator same-vgg 0 1000 vgg same-task
    generator both-vgg 0 1500 vgg "task same-task"
}

mechanisms() { # SEED: what the paper's generator and each of its three mechanisms bring
    generator same-vgg-weightformer "$1" 1000 vgg same-task --preset weightformer
    generator same-vgg-weightformer-no-flow "$1" 1000 vgg same-task --preset weightformer --no-flow
    generator same-vgg-weightformer-no-mask "$1" 1000 vgg same-task --preset weightformer --no-mask
    generator same-vgg-weightformer-no-shift "$1" 1000 vgg same-task --preset weightformer --shift-weight 0
}

tables() { # KIND: goes on where it stopped, and adds what new generators bring
    run "$RUNS/same-$1.json" python examples/same_table.py --runs "$RUNS" --kind "$1" --output "$RUNS/same-$1.json"
}

everything() {
    trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
    { zoos vgg; zoos resnet; } &
    zoos vit
    wait $!
    generators 1 &
    generators 0
    wait $!
    generators 2 &
    mechanisms 0
    wait $!
    tables vit &
    { tables vgg; tables resnet; }
    wait $!
}

export OMP_NUM_THREADS=1
if [ $# -gt 0 ]; then "$@"; else everything; fi
