#!/usr/bin/env bash
# Every merge method on silo teachers and on teachers of the same images of CIFAR-10, and what `--method auto` takes: three
# draws of three and of six teachers each, 100 steps of distillation from the best teacher, the soup and auto's student
# besides. The zoos are made as those of silo_teachers.sh and same_teachers.sh are, without the tasks generators learn from.
#
#   zoos KIND         a base of CIFAR-100's classes 0-49 and the two zoos of CIFAR-10
#   split KIND        ten silo teachers, Dirichlet 0.3
#   same KIND         sixteen teachers of the same images, eight of them spoilt
#   scratch KIND      independent teachers of scratch_teachers.sh
#
# A draw that is there is not made again. Usage: examples/compare_methods.sh [WORK_FOLDER [STEP]]
# (default runs/compare; the folder of scratch_teachers.sh: SCRATCH=runs/scratch; DATA=../shared/data)
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${1:-runs/compare}
SCRATCH=${SCRATCH:-runs/scratch}
DATA=${DATA:-../shared/data}
shift || true
source examples/stages.sh
need cifar10 cifar100

compared() { # NAME TEACHERS OPTIONS...
    local name=$1 teachers=$2
    shift 2
    run "$RUNS/tables/$name" wfcli compare "$teachers" "$@" --data "$DATA/cifar10" --seeds 3 --distill-steps 100 --resume \
        -o "$RUNS/tables/$name"
}

zoos() { # KIND
    local base=$RUNS/$1/base rate=0.1
    [ "$1" != vit ] || rate=0.002
    stage "$base/zoo.json" wfcli train-teachers $(net "$1") --data "$DATA/cifar100" --label-column fine_label --classes 0-49 \
        --count 1 --same-recipe --epochs 30 --lr "$rate" -o "$base"
    silos_of_cifar10 "$1"
    same_of_cifar10 "$1"
}

split() { compared "split-$1" "$RUNS/$1/cifar10/teacher-*.safetensors" $(net "$1") --counts 3,6 --base "$RUNS/$1/base/teacher-00.safetensors"; }
same() { compared "same-$1" "$RUNS/$1/same-cifar10/teacher-*.safetensors" $(net "$1") --counts 3,6 --base "$RUNS/$1/base/teacher-00.safetensors"; }

scratch() {
    local zoo=$SCRATCH/$1/teachers
    compared "scratch-$1" "$zoo/teacher-0[0-5].safetensors" $(python - "$zoo/zoo.json" << 'PYTHON'
import json
import sys

arch = json.load(open(sys.argv[1]))["architecture"]
print("--arch", arch["name"], *(f"--arch-arg {name}={value}" for name, value in arch["args"].items()))
PYTHON
    ) --counts 3,6
}

everything() {
    trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
    { zoos vgg; split vgg; same vgg; } &
    { zoos resnet; split resnet; same resnet; }
    wait $!
    { zoos vit; split vit; same vit; } &
    for kind in vgg11_bn resnet18; do [ ! -e "$SCRATCH/$kind/teachers/zoo.json" ] || scratch "$kind"; done
    wait $!
}

export OMP_NUM_THREADS=1
if [ $# -gt 0 ]; then "$@"; else everything; fi
