#!/usr/bin/env bash
# Silo teachers of new datasets, for three kinds of nets: a VGG and a ResNet with BatchNorm, a Vision Transformer.
#
#   zoos        examples/zoos/*.toml: a base on classes 0-49 of CIFAR-100, 12 tasks of classes 50-84 to learn from, test
#               tasks of classes 85-99; ten teachers of CIFAR-10; one net trained on the images of all teachers of a task
#   generators  `universal`: one for each kind and one for all kinds, three seeds each; with each kind left out; on the
#               VGG the paper's `weightformer`, and both with and without one of their mechanisms (the step `longer`,
#               half an hour of twice the steps for all kinds, is not part of the whole)
#   tables      K = 3 and 6 (10 for the VGG), five subsets of each test task's teachers: students, baselines, controls
#
# About two hours of training and two and a half of tables on two cores. A stage is skipped when its output is there; an
# interrupted one goes on.
# Usage: examples/silo_teachers.sh [WORK_FOLDER [STEP]]     (default runs/silos; DATA=../shared/data)
# A step is one of the functions below with its arguments: zoos vit, generator vgg 0 1000 vgg task, tables resnet.
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${1:-runs/silos}
DATA=${DATA:-../shared/data}
shift || true
source examples/stages.sh
need cifar10 cifar100

zoos() { # KIND
    local base=$RUNS/$1/base/teacher-00.safetensors last=test-02 classes test
    [ "$1" = vgg ] && last=disjoint-6-04
    stage "$RUNS/$1/$last/zoo.json" wfcli train-teachers --zoo-recipe "examples/zoos/$1.toml" --data "$DATA/cifar100" -o "$RUNS/$1"
    silos_of_cifar10 "$1"
    for test in test-00 test-01 test-02; do
        classes=$(python -c "import json, sys; print(json.load(open(sys.argv[1]))['data']['classes'])" "$RUNS/$1/$test/zoo.json") ||
            exit 1
        stage "$RUNS/$1/joint-$test/zoo.json" wfcli train-teachers $(net "$1") --data "$DATA/cifar100" --label-column fine_label \
            --classes "$classes" --init "$base" --count 1 --epochs 12 --same-recipe -o "$RUNS/$1/joint-$test"
    done
}

generators() { # SEED: of a Transformer this wide, fewer steps cost as much
    generator vgg "$1" 1000 vgg task
    generator resnet "$1" 1000 resnet task
    generator vit "$1" 400 vit task
    generator all "$1" 2400 "vgg resnet vit" task
}

left_out() { # one kind each
    generator no-vit 0 2000 "vgg resnet" task
    generator no-resnet 0 1300 "vgg vit" task
    generator no-vgg 0 1300 "resnet vit" task
}

longer() { # whether one generator for all kinds lacks steps
    generator all-long 0 4800 "vgg resnet vit" task
}

mechanisms() { # SEED: what each of the paper's three mechanisms brings
    generator vgg-no-flow "$1" 1000 vgg task --no-flow
    generator vgg-shift "$1" 1000 vgg task --shift-weight 0.1
    generator vgg-full "$1" 1000 vgg task --attention full
    generator vgg-full-mask "$1" 1000 vgg task --attention full --mask
    generator vgg-weightformer "$1" 1000 vgg task --preset weightformer
    generator vgg-weightformer-no-flow "$1" 1000 vgg task --preset weightformer --no-flow
    generator vgg-weightformer-no-mask "$1" 1000 vgg task --preset weightformer --no-mask
    generator vgg-weightformer-no-shift "$1" 1000 vgg task --preset weightformer --shift-weight 0
}

tables() { # KIND: goes on where it stopped, and adds what new generators bring
    run "$RUNS/$1.json" python examples/silo_table.py --runs "$RUNS" --kind "$1" --output "$RUNS/$1.json"
}

# Two lanes of one thread each use two cores better than one job with two threads. Within them `set -e` is on.
everything() {
    trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
    { zoos vgg; zoos resnet; } &
    zoos vit
    wait $!
    { generators 1; left_out; } &
    generators 0
    generators 2
    wait $!
    mechanisms 0 &
    tables vit
    wait $!
    tables vgg &
    tables resnet
    wait $!
}

export OMP_NUM_THREADS=1
if [ $# -gt 0 ]; then "$@"; else everything; fi
