#!/usr/bin/env bash
# The transformer and the StackGAN on the same drawn shards, half an hour of two cores each, and what both draw for held-out captions
# in one report and one picture: docs/comparison.md. What is finished is not repeated; what was interrupted is to be removed first,
# since it is timed.
#   bash tools/compare_stackgan.sh TRAIN VALID CLIP OUTPUT     shards of dalle-draw-shapes, a CLIP of ours as judge of both
# GAN names a configuration of stackgan/ (dfgan). DVAE_STEPS, PRIOR_STEPS and GAN_STEPS are the updates: on another machine choose
# those that take half an hour; seconds.tsv tells.
set -euo pipefail
cd "$(dirname "$0")/.."
train=${1:?training shards} valid=${2:?held-out shards} clip=${3:?folder of a CLIP} output=${4:?folder of all that is made}
gan=${GAN:-dfgan}
mkdir -p "$output/transformer"

part() { # NAME FILE COMMAND...: makes FILE, and notes how long it took
    local name=$1 file=$2 begun=$SECONDS
    shift 2
    [ -e "$file" ] && return
    "$@"
    printf '%s\t%s\n' "$name" $((SECONDS - begun)) >>"$output/seconds.tsv"
}

model="$output/transformer"
part tokenizer "$model/tokenizer/tokenizer.json" \
    dalle-train-tokenizer --data "$train" --output "$model/tokenizer/tokenizer.json" --vocabulary 512
part dvae "$model/dvae/model.safetensors" \
    dalle-train-dvae --config shapes/dvae --data "$train" --output "$model/dvae" --run.steps "${DVAE_STEPS:-1500}"
part tokens "$output/tokens/meta.json" dalle-tokenize --data "$train" --dvae "$model/dvae" --output "$output/tokens"
part prior "$model/prior/model.safetensors" \
    dalle-train-prior --config shapes/prior --data "$output/tokens" --dvae "$model/dvae" \
    --tokenizer "$model/tokenizer/tokenizer.json" --output "$model/prior" --run.steps "${PRIOR_STEPS:-3300}"
part gan "$output/gan/model.safetensors" \
    dalle-train-stackgan --config "stackgan/$gan" --data "$train" --valid_data "$valid" --class_key scene \
    --text_encoder bert:all-minilm-l6-v2 --output "$output/gan" --run.steps "${GAN_STEPS:-6000}"

compared=""
for name in transformer gan; do
    [ -f "$output/$name-evaluation/metrics.json" ] ||
        dalle-evaluate --model "$output/$name" --reference "$valid" --most 512 --n 1 --keep 1 --rerank false --judge "$clip" \
            --features "efficientnet-lite0 clip:$clip" --output "$output/$name-evaluation"
    compared="$compared $name=$output/$name-evaluation"
done
dalle-evaluate --compare "${compared# }" --output "$output/comparison" --overwrite true
python tools/contact_sheet.py "$output"/{transformer,gan}-evaluation "$output/comparison.webp" --most 48 --columns 6
for name in transformer gan; do
    python - "$output/$name" <<'END'
import resource, sys, time
import dalle
model = dalle.load(sys.argv[1], rerank=False)
taken_s = []
for _ in range(4):
    begun = time.perf_counter()
    model.generate("a red circle above a blue square", n=256, keep=1)
    taken_s.append(time.perf_counter() - begun)
peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(f"{sys.argv[1]}: {1000 * min(taken_s[1:]) / 256:.1f} ms an image of 256; {peak_gb:.2f} GB of main memory")
END
done
cat "$output/seconds.tsv"
