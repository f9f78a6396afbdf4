"""`dalle-publish DIR [--repo owner/name]`: a model, checked, with its card, to the Hugging Face Hub."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from dalle.cli import arguments
from dalle.config import Publish
from dalle.outputs.ownership import claimed_file
from dalle.outputs.whole import replace_text

_COMMAND = "dalle-publish"


def main() -> None:
    """Console script."""
    arguments.plain_warnings(_COMMAND)
    arguments.run(publish, _COMMAND)


def publish(argv: list[str] | None = None) -> None:
    """Parse, check, write the card, list, upload."""
    config = arguments.parse(Publish, _COMMAND, argv, positional="folder")
    folder = Path(config.folder)
    if not folder.is_dir():
        raise ValueError(f"folder {folder}: no such folder; name that of a model, with prior/ and dvae/ in it")
    _check(folder)

    from dalle.ready.files import CARD, read_text
    from dalle.ready.publishing import staged, upload

    card = _card(config, folder)
    kept = card is None
    card = read_text(folder / CARD) if card is None else card
    with staged(folder, card) as stage:
        _list(stage, folder, config.repo)
        if config.dry_run:
            print("nothing was written, and nothing has left")
            return
        if kept:
            print(f"{folder / CARD} is as a person wrote it, and stays; --card overwrite writes it anew")
        elif not (folder / CARD).is_file() or read_text(folder / CARD) != card:
            # the folder may be one that is only read
            with claimed_file(folder / CARD, _COMMAND, overwrite=True) as path:
                replace_text(path, card)
        if config.repo is None:
            print(f"{folder / CARD}: the card; to upload the model give --repo owner/name")
            return
        commit = upload(stage, config.repo, config.private, config.overwrite)
    print(f'{config.repo} is there: dalle-sample --model {config.repo} "a caption"')
    print(f"and for good, whatever comes after it: --model {config.repo}@{commit}")


def _check(folder: Path) -> None:
    """Raises ValueError unless the model loads, all hashes are those of its weights, and what leaves is what lies in the folder."""
    from dalle.models.folder import check_hash
    from dalle.outputs.run_files import WEIGHTS
    from dalle.ready.files import model_files, parts_of
    from dalle.sampling.loading import load
    from dalle.text import Tokenizer

    for name in model_files(folder):
        path = folder / name
        # a folder that somebody else made may call any file of this machine its card; weights have to be weights
        if path.is_symlink() and path.name != WEIGHTS:
            raise ValueError(
                f"{path}: is a link to {os.path.realpath(path)}, and what leaves is what lies in the folder: put a copy in its place, or "
                "publish a folder that dalle-export made"
            )
    for name in model_files(folder):
        if Path(name).name == "tokenizer.json":
            Tokenizer.load(folder / name)
    load(folder, device="cpu", shortlist="codes-clip" in parts_of(folder))
    for part in parts_of(folder):
        check_hash(folder / part)


def _card(config: Publish, folder: Path) -> str | None:
    """The text of the card; null where a person's stays. Raises ValueError where something was to be said in that."""
    from dalle.ready.card import Told, is_ours, make_card
    from dalle.ready.facts import read_card
    from dalle.ready.files import CARD

    names = ("licence", "about", "example", "hardware")
    said = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    if config.card == "keep" and not is_ours(folder / CARD):
        if said:
            name, value = next(iter(said.items()))
            raise ValueError(
                f"{name} {value}: {folder / CARD} is as a person wrote it, and stays; say it there, or give --card overwrite"
            )
        return None
    name = config.repo or os.path.basename(os.path.realpath(folder))
    told = Told(
        name,
        name.rpartition("/")[2],
        replace(read_card(folder / CARD), **said),
        Path(config.runs or folder),
    )
    return make_card(folder, told)


def _list(stage: Path, folder: Path, repository: str | None) -> None:
    """Print what leaves, with sizes, and what stays."""
    from dalle.ready.files import model_files

    leaving = model_files(stage)
    sizes = {name: (stage / name).stat().st_size for name in leaving}
    width = max(len(name) for name in leaving)
    print(f"what {'leaves for ' + repository if repository else 'would leave'}:")
    for name, size in sizes.items():
        print(f"  {name:{width}}  {size / 1e6:>10.3f} MB")
    print(f"  {'in all':{width}}  {sum(sizes.values()) / 1e6:>10.3f} MB")
    others = sum(1 for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).as_posix() not in sizes)
    if others:
        print(f"{others:,} other files of {folder} stay here")
