#!/usr/bin/env bash
# Trains the ready weights `icons` from shards of captioned pictures. What is finished is not repeated, and what was interrupted
# goes on where it was: call it again.
#   bash tools/train_icons.sh DATA OUTPUT      DATA holds emoji/, emoji2/ and clipart/ with train-*.tar and valid-*.tar
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?folder of the shards} output=${2:?folder of all that is made}
resume() { [ -d "$output/$1/checkpoints" ] && echo true || echo false; }
shards() { echo "$data/emoji/$1-*.tar $data/emoji2/$1-*.tar $data/clipart/$1-*.tar"; }

# pictures as they are, for stage one and the reranker
if [ ! -d "$output/data" ]; then
    rm -rf "$output/data.partial"
    python tools/icons_data.py --data "$(shards train)" --valid_data "$(shards valid)" --output "$output/data.partial"
    mv "$output/data.partial" "$output/data"
fi
# with a margin and mirrored, for the prior, which sees eight crops of each
if [ ! -d "$output/data-prior" ]; then
    rm -rf "$output/data-prior.partial"
    python tools/icons_data.py --data "$(shards train)" --valid_data "$(shards valid)" --margin_px 8 --mirror \
        --output "$output/data-prior.partial"
    mv "$output/data-prior.partial" "$output/data-prior"
fi
train="$output/data/train-*.tar" valid="$output/data/valid-*.tar"
[ -f "$output/tokenizer.json" ] || dalle-train-tokenizer --data "$train" --output "$output/tokenizer.json" --vocabulary 2048
if [ ! -f "$output/dvae/model.safetensors" ]; then
    dalle-train-dvae --config icons/dvae --data "$train" --valid_data "$valid" --output "$output/dvae" --resume "$(resume dvae)"
fi
[ -f "$output/tokens/train/meta.json" ] ||
    dalle-tokenize --data "$output/data-prior/train-*.tar" --crops 8 --dvae "$output/dvae" --output "$output/tokens/train"
[ -f "$output/tokens/valid/meta.json" ] ||
    dalle-tokenize --data "$output/data-prior/valid-*.tar" --dvae "$output/dvae" --output "$output/tokens/valid"
if [ ! -f "$output/prior/model.safetensors" ]; then
    dalle-train-prior --config icons/prior --data "$output/tokens/train" --valid_data "$output/tokens/valid" \
        --dvae "$output/dvae" --tokenizer "$output/tokenizer.json" --output "$output/prior" --resume "$(resume prior)"
fi
if [ ! -f "$output/clip/model.safetensors" ]; then
    dalle-train-clip --config icons/clip --data "$train" --valid_data "$valid" --dvae "$output/dvae" \
        --tokenizer "$output/tokenizer.json" --output "$output/clip" --resume "$(resume clip)"
fi
# sharper pictures of the same codes
if [ ! -f "$output/decoder/model.safetensors" ]; then
    dalle-train-dvae --config icons/decoder --from "$output/dvae" --data "$train" --valid_data "$valid" \
        --output "$output/decoder" --resume "$(resume decoder)"
fi
# who judges is not who ranks: another seed, and no image through the dVAE
if [ ! -f "$output/judge/model.safetensors" ]; then
    dalle-train-clip --config icons/clip --run.seed 1 --data "$train" --valid_data "$valid" \
        --tokenizer "$output/tokenizer.json" --output "$output/judge" --resume "$(resume judge)"
fi
[ -f "$output/evaluation/metrics.json" ] ||
    dalle-evaluate --model "$output" --dvae "$output/decoder" --reference "$valid" --judge "$output/judge" \
        --train "$train" --output "$output/evaluation"
