#!/usr/bin/env bash
# What a quarter of an hour with one GPU is spent on, in two parts of less than ten minutes each:
#
#     scripts/gpu_quarter.sh measure OUT     tests, training steps, sampling, likelihood, a resumed run
#     scripts/gpu_quarter.sh train OUT       the CIFAR-10 network goes on from its last weights, and is evaluated
#
# Each step has a limit of time, and a failed one does not end the others: OUT/steps-PART.tsv has the status and seconds of
# each,
# OUT/NAME.log what each wrote, OUT/device.txt the card; OUT is a path from the root of the repository. Nothing is
# downloaded. To be set, where the defaults do not do:
#
#     PYTHON    interpreter of the environment (.venv/bin/python, or python)
#     DATA      folder of CIFAR-10 in the Hub's layout, 54 MB (../shared/data/cifar10)
#     WEIGHTS   pipeline that the training starts from (pretrained/cifar10-ve)
#     STEPS     of the training (4000), at the end of which the learning rate has fallen to 0
#     DRY=1     on the CPU, with next to nothing to do in each step: to see that all of them work
set -u
cd "$(dirname "$0")/.." || exit 1

part=${1:-} out=${2:-}
if [[ ($part != measure && $part != train) || -z $out ]]; then
    echo "usage: scripts/gpu_quarter.sh measure|train OUT" >&2
    exit 2
fi
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python)}
data=${DATA:-../shared/data/cifar10} weights=${WEIGHTS:-pretrained/cifar10-ve} steps=${STEPS:-4000} dry=${DRY:-0}
export HF_HUB_OFFLINE=1 TQDM_MININTERVAL=5 PYTHONUNBUFFERED=1
mkdir -p "$out"
rm -f "$out/steps-$part.tsv"
if [[ $dry == 1 ]]; then
    device=cpu
    export CUDA_VISIBLE_DEVICES="" ACCELERATE_USE_CPU=true OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    echo "none: a dry run on the CPU" > "$out/device.txt"
else
    device=cuda
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader > "$out/device.txt" || exit 1
fi

# step NAME SECONDS COMMAND...: run it for so many seconds at most, and write down what became of it.
step() {
    local name=$1 limit=$2 begin=$SECONDS status=0
    shift 2
    echo "== $name"
    # An interrupted training saves a checkpoint; what has not ended a minute later is killed.
    timeout --signal=INT --kill-after=60 "$limit" "$@" > "$out/$name.log" 2>&1 || status=$?
    printf '%s\t%s\t%s s\n' "$name" "$status" "$((SECONDS - begin))" | tee -a "$out/steps-$part.tsv"
}

if [[ $part == measure ]]; then
    if [[ $dry == 1 ]]; then
        cost=(--device cpu --only small-28 --batch_sizes 2 --seconds 1 --no-compile)
        throughput=(--rounds 1 --steps 1 --curve_steps 0 --batch_size 2)
        sampling=(--batch_sizes 1 2 --rounds 1 --steps 2)
        likelihood=(likelihood.num_images=2 likelihood.rtol=0.01 likelihood.atol=0.01 data.max_images=10)
        run=(steps=4 checkpoint_every=2 batch_size=4 data.max_images=40 samples.rows=1 samples.num_inference_steps=2)
    else
        cost=(--only small-28 cifar10-ncsnpp-continuous --batch_sizes 128 --seconds 110)
        throughput=(--rounds 3 --steps 10 --curve_steps 0 --batch_size 128 --compile)
        sampling=(--batch_sizes 1 1024 --rounds 5 --compiled)
        likelihood=(likelihood.num_images=1000 likelihood.batch_size=250)
        run=(steps=400 checkpoint_every=200)
    fi
    step tests 90 "$python" -m pytest -q tests/test_gpu.py
    step training_cost 140 "$python" benchmarks/training_cost.py "$out/training_cost" "${cost[@]}"
    step sampling_speed 80 "$python" benchmarks/sampling_speed.py "$out/sampling_speed" --device "$device" "${sampling[@]}"
    step likelihood 50 "$python" training/evaluate.py pretrained/fashion-mnist-ve output_dir="$out/likelihood" \
        data.dataset=fashion_mnist samples.num_images=0 neighbors.num_images=0 cache_dir="$out/features" "${likelihood[@]}"
    # One run whole, and the second half of it again from the checkpoint in its middle.
    run=(training/configs/demo.yaml "${run[@]}" checkpoints_limit=null sample_every=0 validate_every=0)
    step run_whole 50 "$python" training/train.py "${run[@]}" output_dir="$out/whole" overwrite=true
    rm -rf "$out/resumed"
    cp -r "$out/whole" "$out/resumed"
    last=$(find "$out/resumed/checkpoints" -maxdepth 1 -name 'step-*' | sort | tail -n 1)
    rm -rf "$last" "$out/resumed/pipeline"
    step run_resumed 40 "$python" training/train.py "${run[@]}" output_dir="$out/resumed" resume=latest
    step runs_compared 20 "$python" -c '
import sys
from safetensors.torch import load_file
whole, resumed = (load_file(f"{run}/pipeline/unet/diffusion_pytorch_model.safetensors") for run in sys.argv[1:])
print("largest difference of a weight:", max((whole[name] - resumed[name]).abs().max().item() for name in whole))
' "$out/whole" "$out/resumed"
    step training_throughput 90 "$python" benchmarks/training_throughput.py "$out/throughput" --device "$device" "${throughput[@]}"
else
    if [[ $dry == 1 ]]; then
        run=(steps=2 batch_size=4 data.max_images=40 validate_every=0 sample_every=0 samples.rows=1 samples.num_inference_steps=2)
        samples=(samples.num_images=20 samples.num_inference_steps=2 samples.batch_size=10 data.max_images=40 \
            bootstrap_resamples=0 neighbors.num_images=4 frechet_reference=data yardsticks='[16]')
    else
        run=(steps="$steps" compile=true mixed_precision=bf16 checkpoint_every=1000 validate_every=1000 sample_every=0)
        samples=(samples.num_images=5000 samples.num_inference_steps=20 samples.batch_size=500 mixed_precision=bf16)
    fi
    # Without the feature network of CIFAR-10, only the nearest training images and the speed.
    [[ -d pretrained/cifar10-features ]] || samples+=(feature_spaces='[]' yardsticks='[]')
    step training 420 "$python" training/train.py training/configs/cifar10_fast.yaml data.dataset="$data" \
        initial_weights="$weights" output_dir="$out/cifar10" overwrite=true "${run[@]}"
    trained=$out/cifar10/pipeline
    [[ -d $trained ]] || trained=$out/cifar10/best # it was interrupted: the one with the least validation loss
    step evaluation 150 "$python" training/evaluate.py "$trained" training/evaluations/cifar10.yaml data.dataset="$data" \
        output_dir="$out/evaluation" cache_dir="$out/features" "${samples[@]}"
fi
