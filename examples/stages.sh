# What the scripts of the small nets share; RUNS is their work folder.
# shellcheck shell=bash

# Make sure that the datasets are there.
need() { # DATASET...
    local set
    for set in "$@"; do
        [ -d "$DATA/$set" ] || { echo "no dataset at $DATA/$set; set DATA to the folder that holds it" >&2; exit 1; }
    done
}

# Run a stage unless its output is there, with its own log; note how long it took.
stage() { # OUTPUT COMMAND...
    [ -e "$1" ] || run "$@"
}

run() { # NAME COMMAND...
    local name=$1 log started=$SECONDS
    log=$RUNS/logs/$(tr / - <<< "${name#"$RUNS"/}").txt
    shift
    mkdir -p "$RUNS/logs"
    echo "$name ..."
    "$@" >> "$log" 2>&1 || { tail -n 5 "$log" >&2; exit 1; }
    echo "$name $((SECONDS - started))" >> "$RUNS/seconds.txt"
}

net() { # KIND
    case $1 in
        vgg) echo --arch vgg11_bn_cifar --arch-arg width=0.25 ;;
        resnet) echo --arch resnet18_cifar --arch-arg width=0.125 ;;
        vit) echo --arch vit_tiny_cifar --arch-arg width=0.67 --arch-arg patch_size=8 ;;
    esac
}

# Ten teachers of CIFAR-10, each with its own Dirichlet share, on the base of RUNS/KIND.
silos_of_cifar10() { # KIND
    stage "$RUNS/$1/cifar10/zoo.json" wfcli train-teachers $(net "$1") --data "$DATA/cifar10" --init "$RUNS/$1/base/teacher-00.safetensors" \
        --count 10 --epochs 8 --seed 100 --shares dirichlet --concentration 0.3 -o "$RUNS/$1/cifar10"
}

# Sixteen teachers of the same images of CIFAR-10, the last eight of them bad.
same_of_cifar10() { # KIND
    stage "$RUNS/$1/same-cifar10/zoo.json" wfcli train-teachers $(net "$1") --data "$DATA/cifar10" --init "$RUNS/$1/base/teacher-00.safetensors" \
        --count 16 --epochs 6 --seed 600 --images-per-teacher 4000 \
        --faults none,none,none,none,none,none,none,none,rate,labels,noise,short,labels,noise,rate,long -o "$RUNS/$1/same-cifar10"
}

generator() { # NAME SEED STEPS KINDS ZOOS OPTIONS...
    local name=$1 seed=$2 steps=$3 kind zoo zoos=()
    for zoo in $5; do for kind in $4; do zoos+=(--zoo "$RUNS/$kind/$zoo-*"); done; done
    shift 5
    stage "$RUNS/generators/$name-$seed/model.safetensors" wfcli train-generator "${zoos[@]}" --steps "$steps" --batch-size 128 \
        --seed "$seed" --resume "$@" -o "$RUNS/generators/$name-$seed"
}
