"""`dalle-evaluate`: a model, or a folder of images, beside real images; or finished evaluations beside each other."""

from __future__ import annotations

import sys

from dalle.cli import arguments
from dalle.config import Evaluate
from dalle.config.checks import warn
from dalle.outputs.ownership import claimed

_COMMAND = "dalle-evaluate"
_SHOWN = 5


def main() -> None:
    """Console script."""
    arguments.plain_warnings(_COMMAND)
    arguments.run(evaluate, _COMMAND)


def evaluate(argv: list[str] | None = None) -> None:
    """Parse, check, measure, write; with a manifest, say whether the digits are the same: exit code 1 where they are not."""
    config = arguments.parse(Evaluate, _COMMAND, argv)
    if config.compare is not None:
        _compare(config)
        return
    with claimed(config.output, _COMMAND, overwrite=config.overwrite) as folder:
        from dalle.evaluation.steps import manifest as manifests
        from dalle.evaluation.steps.run import run

        manifest = None
        if config.manifest is not None:
            manifest = manifests.read_manifest(config.manifest)
            where = f"manifest {config.manifest}: "
            config = manifests.settings_of(
                manifest, config, lambda values: arguments.parse_model(Evaluate, values, where)
            )
            if other := manifests.other_machine(manifest):
                warn(f"this machine may round otherwise: {'; '.join(other)}")
        differing = run(config, folder, manifest, lambda what: print(what, flush=True))
    print(f"{folder / 'report.html'}, {folder / 'metrics.json'} and {folder / 'manifest.json'}")
    if manifest is None:
        return
    if differing:
        more = f", and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        print(f"{len(differing)} figures are not those of the manifest: {'; '.join(differing[:_SHOWN])}{more}")
        sys.exit(1)
    print("all figures are those of the manifest, to the last digit")


def _compare(config: Evaluate) -> None:
    from dalle.evaluation.steps.compared import compare_evaluations, read_compared

    assert config.compare is not None
    evaluations = read_compared(config.compare)
    with claimed(config.output, _COMMAND, overwrite=config.overwrite) as folder:
        compare_evaluations(evaluations, folder)
    print(f"{folder / 'report.html'} and {folder / 'metrics.json'}")
