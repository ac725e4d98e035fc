#!/usr/bin/env bash
# Federated learning in one round: six silos train on images of their own, which never travel; their checkpoints do, once;
# the server, which has no image at all, makes one model of them.
#
#   base     a small VGG trained on CIFAR-100: what everybody starts from
#   silos    six fine-tunes, each on its own Dirichlet-0.3 share of CIFAR-10
#   server   only teacher-*.safetensors: `wfcli fuse` makes the soup and the student, without data
#
# The table at the end looks at the test images, which nobody has trained on. About ten minutes on two cores.
# Usage: examples/one_shot_federated.sh [WORK_FOLDER]     (default runs/one_shot_federated; DATA=../shared/data)
set -euo pipefail
cd "$(dirname "$0")/.."
RUNS=${1:-runs/one_shot_federated}
DATA=${DATA:-../shared/data}
NET=(--arch vgg11_bn_cifar --arch-arg width=0.25)
for set in cifar10 cifar100; do
    [ -d "$DATA/$set" ] || { echo "no dataset at $DATA/$set; set DATA to the folder that holds cifar10 and cifar100" >&2; exit 1; }
done
mkdir -p "$RUNS/server"

[ -e "$RUNS/base/zoo.json" ] || wfcli train-teachers "${NET[@]}" --data "$DATA/cifar100" --label-column fine_label \
    --count 1 --same-recipe --epochs 12 --lr 0.1 -o "$RUNS/base"
[ -e "$RUNS/silos/zoo.json" ] || wfcli train-teachers "${NET[@]}" --data "$DATA/cifar10" --init "$RUNS/base/teacher-00.safetensors" \
    --count 6 --shares dirichlet --concentration 0.3 --epochs 8 --jobs 2 -o "$RUNS/silos"

# What travels.
cp "$RUNS"/silos/teacher-*.safetensors "$RUNS/server/"
cd "$RUNS/server"
wfcli fuse 'teacher-*.safetensors' "${NET[@]}" --method soup -o soup.safetensors
wfcli fuse 'teacher-*.safetensors' "${NET[@]}" -o student.safetensors
wfcli fuse 'teacher-*.safetensors' "${NET[@]}" --probes 2000 -o student_probes.safetensors
cd - > /dev/null

wfcli eval "$RUNS"/server/{soup,student,student_probes}.safetensors --teachers "$RUNS/server/teacher-*.safetensors" "${NET[@]}" \
    --data "$DATA/cifar10" | tee "$RUNS/table.txt"
