"""The second step of `dalle-train`: a plan is made, or the one that is there is taken."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, fields, replace
from typing import Any

from dalle.cli.own.stages import Stages
from dalle.config import Filters, TrainFolder
from dalle.config.checks import require
from dalle.own import budget, needs
from dalle.own.budget import in_words
from dalle.own.facts import Machine, Pictures, look_at_machine
from dalle.own.plan import Sizes, choose_sizes, deserved_minutes, expected_update_s, fit_clip_batch
from dalle.own.plan_files import STAGES, PlanFiles, merged
from dalle.own.settings import plain, stage_settings, with_updates
from dalle.own.start import sizes_of

_MEASURED_SHARE, _MOST_MEASURED_S = 0.02, 6.0
"""Of the time, and at most, that a stage's updates are timed before they are planned."""
_SLOWER = 0.6
"""Of the speed expected, below which the sizes are chosen again for a machine that is so much slower."""
BESIDE = 1.06
"""Of the updates' time what validation, pictures and checkpoints take as well."""


_DEFAULTS = {field.name: field.default for field in fields(TrainFolder)}
_CHOICE = ("captions", "image_column", "caption_column")
"""Of a request, how the pictures are read."""
_NOT_PLANNED = ("changes", "candidates", "filters", "valid_share", *_CHOICE)
"""Of a request, what plans nothing anew by itself: the pictures, which are what they are, and what only the gallery asks for."""


def settle(config: TrainFolder, files: PlanFiles) -> TrainFolder:
    """The settings, and those of the plan that is there where the line says nothing: a call that says less goes on as before."""
    before = files.request
    if before is None:
        return config
    unsaid = [name for name in ("minutes", "start_from", "freeze", *_CHOICE) if getattr(config, name) is None]
    kept: dict[str, Any] = {name: before.get(name) for name in unsaid}
    if config.start_from not in (None, before["start_from"]):  # other weights, and all of them unless the line says so
        kept.pop("freeze", None)
    changes = {name: getattr(config, name) or before["changes"].get(name, {}) for name in STAGES}
    # what is as it is by itself was not said, or might as well not have been
    kept |= {
        name: before[name] for name in ("seed", "valid_share", "candidates") if getattr(config, name) == _DEFAULTS[name]
    }
    if config.filters == Filters():
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in before["filters"].items()}
        kept["filters"] = Filters(**values)
    return replace(config, **kept, **changes)


def make_plan(stages: Stages) -> None:
    """Say what will be done, and write it where it is new.

    Raises:
        ValueError: a setting of the plan is refused by its command, or there is too little memory or disk
    """
    files, before, request, is_new = stages.files, stages.files.request, _request(stages), False
    if before == request:
        print(f"as planned before: {files.folder}")
    elif before is not None and _rest(before) == _rest(request):
        _change(stages, request)
    else:
        if before is not None:
            names = {"data": "the pictures", "start": "the ready weights"}
            changed = [
                names.get(name, name)
                for name in request
                if name not in _NOT_PLANNED and request[name] != before.get(name)
            ]
            print(
                f"planned anew, since other than before: {', '.join(changed)}; earlier models are kept in {stages.folder}/earlier-N"
            )
        _write_new(stages, request)
        is_new = True
    for stage in files.edited():
        stages.parse(stage)
        print(f"{files.path(stage)} was changed by hand and is taken as it is")
    for line in files.facts.get("said", []):
        print(line)
    if is_new:
        print(f"written to {files.folder}, one file for each stage, to be read, or changed")


def _request(stages: Stages) -> dict[str, Any]:
    config, start = stages.config, stages.start
    return {
        "data": stages.data_hash,
        "minutes": config.minutes,
        "start_from": config.start_from,
        "freeze": config.freeze,
        "start": start.hashes if start else None,
        "seed": config.seed,
        "valid_share": config.valid_share,
        "candidates": config.candidates,
        **{name: getattr(config, name) for name in _CHOICE},
        "filters": json.loads(json.dumps(asdict(config.filters))),  # as it is read back
        "changes": {name: getattr(config, name) for name in STAGES if getattr(config, name)},
    }


def _rest(request: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if name not in _NOT_PLANNED}


def _change(stages: Stages, request: dict[str, Any]) -> None:
    """Some settings alone: the other stages stay as they are planned, and trained."""
    files, settings = stages.files, {stage: stages.files.settings(stage) for stage in stages.files.stages}
    assert files.request is not None
    before = files.request["changes"]
    for stage in files.stages:
        changes = request["changes"].get(stage, {})
        if changes != before.get(stage, {}) and stage in files.edited():
            print(f"{files.path(stage)} was changed by hand: change it there to {_flat(changes)}")
        elif changes != before.get(stage, {}):
            settings[stage] = merged(settings[stage], changes, f"{stage}.")
            stages.parse(stage, settings[stage])
            print(f"{files.path(stage)}: with {_flat(changes) or 'nothing set'}")
    files.write(settings, request, files.facts)


def _write_new(stages: Stages, request: dict[str, Any]) -> None:
    config, start = stages.config, stages.start
    pictures = stages.pictures
    require(
        pictures.pairs > 1,
        f"source {config.source}: has {pictures.pairs} picture to train on, which would be all that is ever drawn; give more, best "
        "hundreds",
    )
    stages.begin_budget()
    machine = look_at_machine(stages.folder)
    own = sizes_of(start, pictures, machine) if start else None
    minutes = config.minutes or deserved_minutes(pictures, machine, own)
    sizes = own or choose_sizes(pictures, machine, minutes)
    parsed = _parsed(stages, _settings(stages, sizes, {}, machine))  # refused before it is timed
    set_by_hand = {kind: parsed[kind].run.steps for kind in stages.trainings if _are_steps_set(config, kind)}
    update_s = _measured(stages, sizes, machine, minutes)
    expected = expected_update_s(sizes, machine)
    slower = min([1.0, *(expected[kind] / update_s[kind] for kind in ("dvae", "prior") if kind in update_s)])
    if own is None and slower < _SLOWER:
        slow = replace(machine, flops_per_s=machine.flops_per_s * slower)
        minutes = config.minutes or deserved_minutes(pictures, slow)
        if (smaller := choose_sizes(pictures, slow, minutes)) != sizes:
            sizes, update_s = smaller, _measured(stages, smaller, machine, minutes)
            expected = expected_update_s(sizes, machine)
    if "clip" in stages.trainings:
        update_s["clip"] = expected["clip"] / slower
        fewer = fit_clip_batch(sizes, update_s["clip"], minutes)
        update_s["clip"] *= fewer.clip_batch / sizes.clip_batch
        sizes = fewer
    update_s = {kind: BESIDE * update_s[kind] for kind in stages.trainings}
    most = budget.most_updates(sizes, pictures)
    left_s = 60 * minutes - stages.spent_s()
    shared = budget.share(left_s, budget.still_to_come(stages.trainings), update_s, most, set_by_hand)
    settings = _settings(stages, sizes, shared.updates, machine)
    parsed = _parsed(stages, settings)
    if own is None:  # with what the command line sets
        sizes = replace(sizes, **{kind: parsed[kind].model for kind in stages.trainings})
    batches = {kind: parsed[kind].run.batch_size for kind in stages.trainings}
    memory = needs.memory_bytes(sizes, machine, batches)
    crops = parsed["tokens"].crops if "tokens" in parsed else 0
    disk = needs.disk_bytes(sizes, stages.data_bytes, pictures.pairs, crops)
    said = [
        *_describe(sizes, start, pictures, machine),
        *_describe_time(config.minutes, minutes, shared, stages.spent_s()),
        *needs.check_room(machine, memory, disk, str(stages.folder)),
    ]
    facts = {"minutes": minutes, "gpus": machine.gpus, "update_s": update_s, "most": most, "said": said}
    stages.files.write(settings, request, facts | {"made": time.strftime("%Y-%m-%d %H:%M")})
    stages.is_planned_now = True


def _settings(stages: Stages, sizes: Sizes, updates: dict[str, int], machine: Machine) -> dict[str, dict[str, Any]]:
    """Of the stages that are run, with what the command line sets."""
    whole = dict.fromkeys(("dvae", "prior", "clip"), 1000) | updates
    settings = stage_settings(sizes, whole, stages.pictures, machine, stages.config.seed)
    for values in settings.values():
        if "images" in values:
            values["images"] = values["images"] | {"max_aspect_ratio": stages.max_aspect_ratio}
    if stages.start is not None:
        for kind in stages.trainings:
            settings[kind] = stages.start.settings(kind, settings[kind])
    return {stage: merged(settings[stage], getattr(stages.config, stage), f"{stage}.") for stage in stages.commands}


def _parsed(stages: Stages, settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {stage: stages.parse(stage, values) for stage, values in settings.items()}


def _are_steps_set(config: TrainFolder, kind: str) -> bool:
    return "steps" in getattr(config, kind).get("run", {})


def _measured(stages: Stages, sizes: Sizes, machine: Machine, minutes: float) -> dict[str, float]:
    """Seconds of an update of dVAE and prior, those that are trained."""
    settings = _settings(stages, sizes, {}, machine)
    models = {"dvae": sizes.dvae, "prior": sizes.prior}
    kinds = [kind for kind in stages.trainings if kind in models]
    # beneath what the line sets, and beside ready weights, whose settings leave the sizes to them
    whole = {kind: merged({"model": plain(models[kind])}, settings[kind]) for kind in kinds}
    return {kind: _time_updates(stages, kind, whole[kind], machine.devices, minutes) for kind in kinds}


def _time_updates(stages: Stages, kind: str, settings: dict[str, Any], devices: int, minutes: float) -> float:
    from dalle.cluster.topology import joined
    from dalle.own.measure import update_s

    config = stages.parse(kind, settings)
    # this process has one GPU, and takes its part of the batch
    run = replace(config.run, batch_size=max(2, config.run.batch_size // devices), steps=1000)
    config = replace(config, run=run)
    with joined() as world:
        return update_s(kind, config, world, min(_MOST_MEASURED_S, _MEASURED_SHARE * 60 * minutes))


def fit(stages: Stages, stage: str) -> None:
    """The updates of the trainings that are left, from the time that is left. Unless it was just timed for the plan, as the first
    training is, the stage is timed now: the machine may have got slower or faster since then, and the reranker had no dVAE to be
    timed with."""
    files, facts = stages.files, stages.files.facts
    update_s, left = dict(facts["update_s"]), stages.left()
    settings = {each: files.settings(each) for each in files.stages}
    if stage != stages.trainings[0] or not stages.is_planned_now:
        values = settings[stage]
        if stages.start is not None and stages.start.goes_on(stage):
            values = merged({"model": plain(getattr(stages.start, stage))}, values)
        update_s[stage] = BESIDE * _time_updates(stages, stage, values, stages.gpus, facts["minutes"])
    by_hand = [each for each in left if each in files.edited() or _are_steps_set(stages.config, each)]
    fixed = {each: stages.parse(each).run.steps for each in by_hand}
    left_s = 60 * facts["minutes"] - stages.spent_s()
    shared = budget.share(left_s, budget.still_to_come(left), update_s, facts["most"], fixed)
    for each in set(left) - set(by_hand):
        settings[each] = with_updates(settings[each], shared.updates[each])
    assert files.request is not None
    files.write(settings, files.request, facts | {"update_s": update_s})


def tell_time(stages: Stages, stage: str) -> None:
    """After a stage: what it took, and when the end is expected."""
    files, left = stages.files, stages.left()
    steps = {each: stages.parse(each).run.steps for each in left}
    left_s = 60 * files.facts["minutes"] - stages.spent_s()
    rest = budget.share(left_s, budget.still_to_come(left), files.facts["update_s"], files.facts["most"])
    took = stages.progress.begun(stage).seconds
    print(
        f"{stage}: {in_words(took)}; {in_words(stages.spent_s())} have passed, and the end is expected after "
        f"{in_words(stages.spent_s() + rest.total_s)}"
        + "".join(
            f"; {each} gets {rest.updates[each]:,} updates where {steps[each]:,} were planned"
            for each in left[:1]
            if rest.updates[each] != steps[each]
        )
    )


def _describe(sizes: Sizes, start: Any, pictures: Pictures, machine: Machine) -> list[str]:
    where = (
        f"{machine.gpus} GPU{'s' * (machine.gpus > 1)}"
        if machine.gpus
        else f"{machine.cores} CPU core{'s' * (machine.cores > 1)}"
    )
    dvae, prior = sizes.dvae, sizes.prior
    lines = [
        f"{pictures.pairs:,} picture{'s' * (pictures.pairs != 1)} to train on and {pictures.valid:,} held out, on {where} "
        f"({machine.flops_per_s / 1e9:,.0f} GFLOP/s)",
        f"images of {dvae.image_size_px} px as {dvae.grid}×{dvae.grid} codes out of {dvae.codebook_size:,}"
        + (f", from pictures of {pictures.side_px} px" if pictures.side_px else ""),
        f"a prior of {prior.depth} layers of width {prior.width}, {needs.prior_weights(sizes) / 1e6:.1f} M weights; captions of up "
        f"to {prior.caption_tokens} tokens out of {prior.text_vocabulary:,}",
    ]
    if start is not None:
        kept = {"decoder": "its dVAE stays as it is", "prior": "its prior stays as it is"}.get(
            start.freeze, "its codes stay as they are"
        )
        lines.insert(1, f"starts from {start.name}, whose sizes and tokens are taken; {kept}")
    if machine.is_cpu and machine.load > 2 * machine.cores:
        lines.append(
            f"other programs are busy on this machine ({machine.load:.0f} want a core): alone it would be faster"
        )
    if pictures.pairs < 64:
        lines.append(
            f"so few pictures are known by heart: what is drawn will be these {pictures.pairs}, and little that is new"
            + ("" if pictures.valid else "; none is held out")
        )
    return lines


def _describe_time(asked: float | None, minutes: float, shared: budget.Shared, spent_s: float) -> list[str]:
    parts = ", ".join(
        f"{kind} {in_words(seconds)}" + (f" ({shared.updates[kind]:,} updates)" if kind in shared.updates else "")
        for kind, seconds in shared.seconds.items()
    )
    end_s = spent_s + shared.total_s
    lines = [f"expected {in_words(end_s)} in all, of which {parts}"]
    if asked is None:
        lines.append(f"these pictures deserve {in_words(60 * minutes)} of this machine; --minutes sets another time")
    elif end_s > 1.1 * 60 * minutes:
        lines.append(f"that is more than the {minutes:g} minutes asked for: less would train nothing")
    elif end_s < 0.9 * 60 * minutes:
        lines.append(f"that is less than the {minutes:g} minutes asked for: more would not help so few pictures")
    return lines


def _flat(values: dict[str, Any], prefix: str = "") -> str:
    parts = []
    for name, value in values.items():
        parts.append(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else f"{prefix}{name} {value}")
    return ", ".join(parts)
