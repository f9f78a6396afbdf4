#!/usr/bin/env bash
# Trains the ready weights `shapes` on drawings that it makes. What is finished is not repeated, and what was interrupted goes on
# where it was: call it again.
#   bash tools/train_shapes.sh OUTPUT
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:?folder of all that is made}
resume() { [ -d "$output/$1/checkpoints" ] && echo true || echo false; }

if [ ! -d "$output/data" ]; then
    rm -rf "$output/data.partial"
    dalle-draw-shapes --output "$output/data.partial" --num_train 100000 --num_valid 2000 --size_px 64
    mv "$output/data.partial" "$output/data"
fi
train="$output/data/train-*.tar" valid="$output/data/valid-*.tar"
[ -f "$output/tokenizer.json" ] || dalle-train-tokenizer --data "$train" --output "$output/tokenizer.json" --vocabulary 512
if [ ! -f "$output/dvae/model.safetensors" ]; then
    dalle-train-dvae --config shapes/dvae --data "$train" --valid_data "$valid" --output "$output/dvae" --resume "$(resume dvae)"
fi
for split in train valid; do
    [ -f "$output/tokens/$split/meta.json" ] ||
        dalle-tokenize --data "$output/data/$split-*.tar" --dvae "$output/dvae" --output "$output/tokens/$split"
done
if [ ! -f "$output/prior/model.safetensors" ]; then
    dalle-train-prior --config shapes/prior --data "$output/tokens/train" --valid_data "$output/tokens/valid" \
        --dvae "$output/dvae" --tokenizer "$output/tokenizer.json" --output "$output/prior" --resume "$(resume prior)"
fi
if [ ! -f "$output/clip/model.safetensors" ]; then
    dalle-train-clip --config shapes/clip --data "$train" --valid_data "$valid" --tokenizer "$output/tokenizer.json" \
        --output "$output/clip" --resume "$(resume clip)"
fi
