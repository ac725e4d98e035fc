#!/usr/bin/env bash
# The main job on an embedded default: four teachers of handwritten digits, each trained on its own share, fused into one student:
# in one pass, and with 500 images that nobody has labelled. The teachers come with the repository (examples/make_digits.py
# made them), the generator too (pretrained/): it has learned from photographs alone, and digits are far from these.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p runs/digits
show() { echo "$ $*"; "$@"; echo; }
digits=('examples/digits/*.safetensors' --arch vgg11_bn_cifar --arch-arg width=0.125 --data digits)
show wfcli fuse "${digits[@]}" -o runs/digits/student.safetensors
show wfcli fuse "${digits[@]}" --unlabelled digits --images 500 -o runs/digits/student_unlabelled.safetensors
