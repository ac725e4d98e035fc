#!/usr/bin/env bash
# Nets of CIFAR-10 trained from different random starts: aligned, repaired, fitted, generated, distilled.
#
#   zoo         six nets of a kind to test on; of the VGG with BatchNorm twelve, of which generators learn from six,
#               and six more whose images are Dirichlet-0.3 shares of their own (vgg11_bn_split)
#   generators  of the VGG with BatchNorm, in the frame of its teachers: universal and specialised
#   tables      K = 2, 4 and 6: students, baselines, controls; for one set of four the same steps of distillation from
#               each; the loss along the straight line between two nets
#
# A stage is skipped when its output is there; an interrupted one goes on.
# Usage: examples/scratch_teachers.sh [WORK_FOLDER [STEP]]     (default runs/scratch; DATA=../shared/data)
# A step is one of the functions below with its arguments: zoo vit, generators 0, tables resnet18.
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${1:-runs/scratch}
DATA=${DATA:-../shared/data}
shift || true
source examples/stages.sh
need cifar10

zoo() { # KIND
    local arch count=6 epochs=4 some=()
    case $1 in
        vgg11) arch="vgg11_cifar --arch-arg width=0.25 --lr 0.03" ;;
        vgg11_bn) arch="vgg11_bn_cifar --arch-arg width=0.25 --lr 0.1" count=12 ;;
        vgg11_bn_split) arch="vgg11_bn_cifar --arch-arg width=0.25 --lr 0.1" epochs=8 some=(--shares dirichlet) ;;
        resnet18) arch="resnet18_cifar --arch-arg width=0.125 --lr 0.1" epochs=3 ;;
        vit) arch="vit_tiny_cifar --arch-arg width=0.67 --arch-arg patch_size=8 --lr 0.002" epochs=3 ;;
    esac
    stage "$RUNS/$1/teachers/zoo.json" wfcli train-teachers --arch $arch --data "$DATA/cifar10" --count "$count" \
        --same-recipe --epochs $epochs --seed 800 "${some[@]}" -o "$RUNS/$1/teachers"
}

generators() { # SEED
    local preset place=$RUNS/vgg11_bn
    for preset in universal specialised; do
        stage "$place/generators/$preset-$1/model.safetensors" wfcli train-generator --zoo "$place/teachers" \
            --zoo-teachers 6-11 --preset "$preset" --steps 1000 --batch-size 128 --seed "$1" --resume -o "$place/generators/$preset-$1"
    done
}

tables() { # KIND: goes on where it stopped, and adds what new generators bring
    run "$RUNS/$1.json" python examples/scratch_table.py --runs "$RUNS" --kind "$1" --output "$RUNS/$1.json"
}

everything() {
    trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
    { zoo vgg11_bn; generators 0; generators 1; generators 2; tables vgg11_bn; zoo resnet18; tables resnet18; } &
    for kind in vgg11 vgg11_bn_split vit; do zoo "$kind"; tables "$kind"; done
    wait $!
}

export OMP_NUM_THREADS=1
if [ $# -gt 0 ]; then "$@"; else everything; fi
