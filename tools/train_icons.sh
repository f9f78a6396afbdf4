#!/usr/bin/env bash
# Trains the icons from shards of captioned pictures. What is finished is not repeated, and what was interrupted goes on where it
# was: call it again. So far the data and stage one.
#   bash tools/train_icons.sh DATA OUTPUT      DATA holds emoji/, emoji2/ and clipart/ with train-*.tar and valid-*.tar
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?folder of the shards} output=${2:?folder of all that is made}
train="$data/emoji/train-*.tar $data/emoji2/train-*.tar $data/clipart/train-*.tar"
valid="$data/emoji/valid-*.tar $data/emoji2/valid-*.tar $data/clipart/valid-*.tar"

if [ ! -d "$output/data" ]; then
    rm -rf "$output/data.partial"
    python tools/icons_data.py --data "$train" --valid_data "$valid" --output "$output/data.partial"
    mv "$output/data.partial" "$output/data"
fi
if [ ! -f "$output/dvae/model.safetensors" ]; then
    resume=$([ -d "$output/dvae/checkpoints" ] && echo true || echo false)
    dalle-train-dvae --config configs/icons/dvae.yaml --data "$output/data/train-*.tar" \
        --valid_data "$output/data/valid-*.tar" --output "$output/dvae" --resume "$resume"
fi
