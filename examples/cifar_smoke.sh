#!/usr/bin/env bash
# A real run in short, on real images: every command once, under six minutes on two cores, with checks of the result.
# Usage: examples/cifar_smoke.sh     (DATA=../shared/data: the folder that holds cifar10 and cifar100)
set -euo pipefail
cd "$(dirname "$0")/.."
DATA=${DATA:-../shared/data}
for set in cifar10 cifar100; do
    [ -d "$DATA/$set" ] || { echo "no dataset at $DATA/$set; set DATA to the folder that holds cifar10 and cifar100" >&2; exit 1; }
done
RUNS=$(mktemp -d)
trap 'rm -rf "$RUNS"' EXIT
NET=(--arch vgg11_bn_cifar --arch-arg width=0.25)
C100=(--data "$DATA/cifar100" --label-column fine_label)
C10=(--data "$DATA/cifar10")
SILOS="$RUNS/silos/teacher-*.safetensors"

echo "== a base, trained on half of the classes of CIFAR-100"
wfcli train-teachers "${NET[@]}" "${C100[@]}" --classes 0-49 --count 1 --same-recipe --epochs 6 --lr 0.1 -o "$RUNS/base"
BASE=$RUNS/base/teacher-00.safetensors

echo "== three silos of CIFAR-10, each with its own images"
wfcli train-teachers "${NET[@]}" "${C10[@]}" --count 3 --init "$BASE" --shares dirichlet --images-per-teacher 1500 --epochs 8 \
    --seed 1 -o "$RUNS/silos"
wfcli inspect --weights "$RUNS"/silos/teacher-*.safetensors

echo "== one student, by the generator that comes with wfcli, and the soup"
wfcli fuse "$SILOS" "${NET[@]}" "${C10[@]}" -o "$RUNS/student.safetensors"
wfcli fuse "$SILOS" "${NET[@]}" --method soup -o "$RUNS/soup.safetensors"

echo "== a generator of our own: a few steps on a small zoo of other classes"
wfcli train-teachers "${NET[@]}" "${C100[@]}" --classes 50-59 --count 5 --init "$BASE" --shares dirichlet --epochs 8 -o "$RUNS/task"
wfcli train-generator --zoo "$RUNS/task" --steps 60 --batch-size 128 -o "$RUNS/generator"
wfcli fuse "$SILOS" "${NET[@]}" --generator "$RUNS/generator" -o "$RUNS/own.safetensors"

echo "== brief fine-tuning, and all of them side by side"
wfcli finetune "$RUNS/student.safetensors" --teachers "$SILOS" "${NET[@]}" "${C10[@]}" --steps 30 -o "$RUNS/tuned.safetensors"
wfcli eval "$RUNS"/{student,own,tuned,soup}.safetensors --teachers "$SILOS" "${NET[@]}" "${C10[@]}" --json > "$RUNS/table.json"
python - "$RUNS/table.json" <<'PY'
import json
import sys

rows = json.load(open(sys.argv[1]))["rows"]
top1 = {row["name"] if row["kind"] == "checkpoint" else row["kind"]: row["top1"] for row in rows}
for name, value in top1.items():
    print(f"{name:24} {100 * value:6.2f} %")
names = {name.removesuffix(".safetensors"): value for name, value in top1.items()}
checks = {
    "the fused student is at least 3 points above the calibrated soup": names["student"] > names["calibrated_soup"] + 0.03,
    "fine-tuning does not lose anything": names["tuned"] >= names["student"] - 0.01,
    "fuse --method soup is the soup of eval": abs(names["soup"] - top1["soup"]) < 1e-3,
}
for text, held in checks.items():
    print("ok  " if held else "FAIL", text)
sys.exit(0 if all(checks.values()) else 1)
PY
