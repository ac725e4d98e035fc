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

generator() { # NAME SEED STEPS KINDS ZOOS OPTIONS...
    local name=$1 seed=$2 steps=$3 kind zoo zoos=()
    for zoo in $5; do for kind in $4; do zoos+=(--zoo "$RUNS/$kind/$zoo-*"); done; done
    shift 5
    stage "$RUNS/generators/$name-$seed/model.safetensors" wfcli train-generator "${zoos[@]}" --steps "$steps" --batch-size 128 \
        --seed "$seed" --resume "$@" -o "$RUNS/generators/$name-$seed"
}
