#!/usr/bin/env bash
# The main job on an embedded default: four teachers of handwritten digits, each trained on its own share, fused into one student.
# The teachers come with the repository (examples/make_digits.py made them), the generator too (pretrained/).
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p runs/digits
echo "wfcli fuse 'examples/digits/*.safetensors' --arch vgg11_bn_cifar --arch-arg width=0.125 --data digits -o runs/digits/student.safetensors"
wfcli fuse 'examples/digits/*.safetensors' --arch vgg11_bn_cifar --arch-arg width=0.125 --data digits -o runs/digits/student.safetensors
