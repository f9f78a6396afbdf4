#!/usr/bin/env bash
# Trains the ready weights `icons` from shards of captioned pictures. What is finished is not repeated, and what was interrupted
# goes on where it was: call it again.
#   bash tools/train_icons.sh DATA OUTPUT      DATA holds emoji/, emoji2/ and clipart/ with train-*.tar and valid-*.tar, which are not
#                                              in the repository (docs/emoji.md)
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
# with a margin and mirrored: eight crops of each for the prior's first part
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
tokens() { # crops folder_of_shards folder_of_tokens
    for split in train valid; do
        [ -f "$output/$3/$split/meta.json" ] ||
            dalle-tokenize --data "$output/$2/$split-*.tar" --crops "$([ $split = train ] && echo "$1" || echo 1)" \
                --dvae "$output/dvae" --output "$output/$3/$split"
    done
}
tokens 8 data-prior tokens-crops
tokens 1 data tokens
train_prior() { # folder tokens options
    [ -f "$output/$1/model.safetensors" ] ||
        dalle-train-prior --config "icons/$1" --data "$output/$2/train" --valid_data "$output/tokens/valid" --dvae "$output/dvae" \
            --tokenizer "$output/tokenizer.json" --output "$output/$1" --resume "$(resume "$1")" "${@:3}"
}
train_prior prior-crops tokens-crops
train_prior prior-plain tokens --from "$output/prior-crops"
train_prior prior tokens-crops --from "$output/prior-plain"
if [ ! -f "$output/clip/model.safetensors" ]; then
    dalle-train-clip --config icons/clip --data "$train" --valid_data "$valid" --dvae "$output/dvae" \
        --tokenizer "$output/tokenizer.json" --output "$output/clip" --resume "$(resume clip)"
fi
# who judges is not who ranks: another seed, and no image through the dVAE
if [ ! -f "$output/judge/model.safetensors" ]; then
    dalle-train-clip --config icons/clip --run.seed 1 --data "$train" --valid_data "$valid" \
        --tokenizer "$output/tokenizer.json" --output "$output/judge" --resume "$(resume judge)"
fi
[ -f "$output/evaluation/metrics.json" ] ||
    dalle-evaluate --model "$output" --reference "$valid" --judge "$output/judge" --train "$train" \
        --output "$output/evaluation"
