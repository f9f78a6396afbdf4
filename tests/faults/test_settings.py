"""Whatever stands in the place of a setting, a command takes it or refuses it in one line, and imports nothing that it names."""

import dataclasses
import random
import shlex
import sys
import typing

import pytest
import yaml

from dalle.cli import arguments
from dalle.config import plain_yaml, shape, shipped
from dalle.config.programs import PROGRAMS

WRONG = [
    *(None, True, "", "x", "null", "1", 0, -1, 2.5, 1e12, 10**12, 10**30, float("inf"), float("-inf"), float("nan")),
    *([], [None], [1, "x"], [[1]], {}, {"x": 1}, {"class_path": "stranger.Thing"}, {1: 2}, {"start": None}),
]
GIVEN = {"data": "x", "dvae": "x", "tokenizer": "x", "output": "x", "image": "x", "captions": "x", "source": "x"}
GIVEN |= {"evaluation": "x", "text_encoder": "x"}
UNDER = {"stackgan/stage-two": "stackgan/f"}
UNDER |= {
    name: "ablations/base" for name in shipped.names() if name.startswith("ablations/") and not name.endswith("/base")
}
"""Of a configuration that is to be laid over another one, such a one."""


def _command_of(name: str) -> str:
    """Which command a shipped configuration is for."""
    model = plain_yaml.read_mapping(shipped.find(name)).get("model", {})
    told = ("prior", "depth"), ("clip", "patch_px"), ("stackgan", "stage"), ("text-encoder", "recurrent")
    kinds = [kind for kind, key in told if key in model]
    return f"dalle-train-{kinds[0] if kinds else 'dvae'}"


def _of_configs():
    """(command, configuration, dotted key) of all keys of each shipped configuration."""
    for name in shipped.names():
        command = _command_of(name)
        for key in _keys(plain_yaml.read_mapping(shipped.find(name))):
            yield command, name, key


def _keys(values: dict, prefix: str = ""):
    for key, value in values.items():
        yield prefix + key
        yield from _keys(value, f"{prefix}{key}.") if isinstance(value, dict) else ()


def _of_commands():
    for command, program in PROGRAMS.items():
        for key in shape.keys_of(program.config):
            yield command, None, key


CASES = [(*case, value) for case in (*_of_configs(), *_of_commands()) for value in WRONG]


def _put(values: dict, key: str, value) -> dict:
    first, dot, rest = key.partition(".")
    inner = values.get(first)
    return values | {first: _put(inner if isinstance(inner, dict) else {}, rest, value) if dot else value}


def _values(command: str, name: str | None) -> dict:
    """What the command is given with a shipped configuration, or without one."""
    kinds = typing.get_type_hints(PROGRAMS[command].config)
    values = {field: text for field, text in GIVEN.items() if kinds.get(field) in (str, str | None)}
    for each in filter(None, (UNDER.get(name or ""), name)):
        for section, its in plain_yaml.read_mapping(shipped.find(each)).items():
            values[section] = {**values.get(section, {}), **its} if isinstance(its, dict) else its
    values |= {"stage_one": "x"} if name and values.get("model", {}).get("stage") == 2 else {}
    return values | ({"start_from": "x"} if "freeze" in values else {})


def _try(path, command: str, name: str | None, key: str, value) -> str | None:
    """What is said, or null where it is taken."""
    cls, values = PROGRAMS[command].config, _values(command, name)
    values |= {"best_of": {"model": "x"}} if key.startswith("best_of.") else {}
    values = _put(values, key, value)
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    try:
        arguments.parse(cls, command, ["--config", str(path)], PROGRAMS[command].positional)
    except ValueError as error:
        return str(error)
    return None


def _check(tmp_path, monkeypatch, cases) -> None:
    """A module that could be imported is there; each refusal is one line, which names the key unless all is missing."""
    (tmp_path / "stranger.py").write_text("raise SystemError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    refused = 0
    for command, name, key, value in cases:
        said = _try(tmp_path / "it.yaml", command, name, key, value)
        case = (command, name, key, value, said)
        assert "stranger" not in sys.modules, case
        if said is not None:
            refused += 1
            assert "\n" not in said and len(said) < 800, case
            told = [*key.split(".")[-2:], "end_step"]  # a start may make an end one that is never reached
            assert not name or any(part in said for part in told), case
    assert refused > len(cases) / 3


def test_a_sample_of_all_wrong_settings(tmp_path, monkeypatch):
    _check(tmp_path, monkeypatch, random.Random(0).sample(CASES, 200))


@pytest.mark.faults
@pytest.mark.parametrize("part", range(20))
def test_all_wrong_settings(tmp_path, monkeypatch, part):
    _check(tmp_path, monkeypatch, CASES[part::20])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "run.steps null: must be a whole number"),
        ([1], r"run.steps \[1\]: must be a whole number"),
        (float("inf"), "run.steps inf: must be a whole number"),
        (10**30, "run.steps 10+: no machine counts so far; give a smaller number"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(tmp_path, value, said):
    with pytest.raises(ValueError, match=rf"^{tmp_path}/own.yaml: {said}$"):
        _raise(_try(tmp_path / "own.yaml", "dalle-train-dvae", "demo/dvae", "run.steps", value))


def _raise(said: str | None) -> None:
    if said is not None:
        raise ValueError(said)


@pytest.mark.parametrize("word", ["--optimizer.weight_decay=.inf", "--optimizer.weight_decay=nan", "--run.steps=null"])
def test_a_wrong_option_is_named(word):
    line = ["--config=demo/dvae", "--data=x", "--output=y", word]
    with pytest.raises(ValueError, match=rf"^{word[2:].partition('=')[0]} (inf|nan|null|None): must be a"):
        arguments.parse(PROGRAMS["dalle-train-dvae"].config, "dalle-train-dvae", line)


@pytest.mark.parametrize(
    "words",
    [
        ["--run.compression", "stranger.Thing"],
        ["--run.compression={class_path: stranger.Thing}"],
        ["--run.compression.class_path", "stranger.Thing"],
        ["--run", "stranger.Thing"],
        ["--run={compression: {class_path: stranger.Thing}}"],
        ["--run.compression.help=stranger.Thing"],
    ],
)
def test_an_option_imports_nothing(tmp_path, monkeypatch, words):
    (tmp_path / "stranger.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    line = ["--config=demo/prior", "--data=x", "--dvae=x", "--tokenizer=x", "--output=y", *words]
    with pytest.raises(ValueError, match=r"run(\.compression(\.class_path|\.help)?)?\b"):
        arguments.parse(PROGRAMS["dalle-train-prior"].config, "dalle-train-prior", line)
    assert "stranger" not in sys.modules


LAUGHS = "a: &a [x, x]\n" + "\n".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "its references add up to too much"),
        ("long: &a " + "x" * 1000 + "\nmany: [" + "*a, " * 1000 + "]", "its references add up to too much"),
        ("a: &a {b: *a}", "refers to itself"),
        ("a: " + "[" * 100_000, "nested more than 50 deep"),
        ("- " * 90_000, "nested more than 50 deep"),
        ("{a: " * 40_000, "nested more than 50 deep"),
        ("run: {steps: 1}\nrun: {steps: 2}", "'run' is there twice"),
        ("run: {steps: 1, steps: 2}", "'steps' is there twice"),
        ("? [a, b]\n: c", "a key has to be a word"),
        ("a: !!python/name:os.system", "no kind of setting"),
        ("a: !!binary aGVsbG8=", "no kind of setting"),
        ("a: !!int ''", "."),
        ("a: !!bool perhaps", "."),
        ("a: " + "9" * 5000, "."),
        ('a: "half of \\ud83d"', "is no text"),
        ('a: "a\\0b"', "is no text"),
        ("a: 1\n---\na: 2", "single document"),
        ("{", "."),
        ("x" * 200_001, "more than the 200,000 bytes"),
        ("just text", "not a mapping of keys"),
        ("", "not a mapping of keys"),
        (b"a: caf\xe9", "not UTF-8"),
    ],
    ids=range(22),
)
def test_yaml_that_is_not_taken(tmp_path, text, said):
    path = tmp_path / "its.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (plain_yaml.read_mapping, lambda path: arguments.read_yaml(str(path))):
        with pytest.raises(ValueError, match=rf"^{path} cannot be read: .*{said}") as raised:
            read(path)
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_yaml_that_is_taken(tmp_path):
    path = tmp_path / "its.yaml"
    path.write_text("\ufeffa: &a {x: 1e-3, y: .5}\nb: {<<: *a, y: 2}\nday: 2001-02-03\nwho: café\n", encoding="utf-8")
    assert plain_yaml.read(path) == {
        "a": {"x": 0.001, "y": 0.5},
        "b": {"x": 0.001, "y": 2},
        "day": "2001-02-03",
        "who": "café",
    }
    many = {
        "list": ["1e3", "yes", "null", "1", "2001-02-03", ".inf", "it: is", 1e-9, 0.1, True, None, -5, float("inf")]
    }
    assert plain_yaml.load(plain_yaml.dump(many), "it") == many


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("017", 17), ("0o17", 15), ("0x1F", 31), ("-5", -5), ("+5", 5), ("0", 0), ("1e3", 1000.0), (".5", 0.5), ("5.", 5.0)),
        *((text, text) for text in ("1:30", "1:30.5", "1_000", "1_0.5", "0b1", "0o8", "-0x1", "1_0e3")),
    ],
)  # fmt: skip
def test_numbers_are_those_of_yaml_12(text, value):
    found = plain_yaml.load(f"a: {text}", "it")["a"]
    assert found == value and type(found) is type(value)
    for each in (text, value):
        assert plain_yaml.load(plain_yaml.dump({"a": [each]}), "it") == {"a": [each]}


@pytest.mark.parametrize("value", ["x", "1:30", "1_000", "0x"])
def test_what_is_tagged_as_a_whole_number_has_to_be_one(value):
    with pytest.raises(
        ValueError, match=rf"^it cannot be read: '{value}' is no whole number at, line 1.*; write it as YAML"
    ):
        plain_yaml.load(f"a: !!int {value}", "it")


@pytest.mark.parametrize("value", ["x", "1:30", "1_000"])
def test_what_is_tagged_as_a_number_has_to_be_one(value):
    with pytest.raises(ValueError, match=rf"^it cannot be read: '{value}' is no number at, line 1.*; write it as YAML"):
        plain_yaml.load(f"a: !!float {value}", "it")
    assert plain_yaml.load("a: [!!float 1, !!float 1e3, !!float .inf]", "it") == {"a": [1.0, 1000.0, float("inf")]}


@pytest.mark.parametrize("value", ["1:30", "1_000"])
def test_times_are_no_numbers_of_steps(tmp_path, value):
    """Neither in a file nor on the command line, which jsonargparse would read as YAML 1.1 has it."""
    path, values = tmp_path / "its.yaml", plain_yaml.read_mapping(shipped.find("demo/prior"))
    path.write_text(plain_yaml.dump(values | GIVEN).replace(f"steps: {values['run']['steps']}\n", f"steps: {value}\n"))
    for words in (["--config", str(path)], ["--config", "demo/prior", "--run.steps", value]):
        with pytest.raises(ValueError, match=rf"run\.steps {value}: must be a whole number$"):
            arguments.parse(PROGRAMS["dalle-train-prior"].config, "dalle-train-prior", words)


def test_text_of_an_option_stays_what_it_was():
    for text in (
        "a cat:",
        "{a}",
        "a: b",
        "- x",
        "[" * 100_000,
        "null",
        "1e3",
        "*a",
        "&a [*a]",
        "true",
        "{a: null}",
        ">",
        "'",
    ):
        sample = PROGRAMS["dalle-sample"].config
        assert arguments.parse(sample, "dalle-sample", [f"--caption={text}"], "caption").caption == text


def test_every_kind_of_setting_can_be_told_in_words():
    for program in PROGRAMS.values():
        for key, kind in shape.keys_of(program.config).items():
            if shape.section(kind) is None and kind is not typing.Any:
                assert shape.allowed(kind), key


@pytest.mark.parametrize(
    ("command", "key", "value"),
    [
        *(
            ("dalle-train-prior", key, value)
            for key, value in (("model.grid", 10**6), ("model.width", 2**40), ("model.depth", 10**12))
        ),
        *(
            ("dalle-train-prior", key, 10**12)
            for key in ("model.text_vocabulary", "model.codebook_size", "model.text_slots")
        ),
        *(
            ("dalle-train-dvae", key, 10**12)
            for key in ("model.image_size_px", "model.codebook_size", "model.encoder_width")
        ),
        *(
            ("dalle-train-dvae", key, 10**12)
            for key in ("model.blocks_per_group", "run.batch_size", "run.loader_workers")
        ),
        ("dalle-train-dvae", "model.width_multipliers", [1] * 40),
        ("dalle-train-dvae", "model.width_multipliers", [1, 10**12]),
        *(("dalle-train-dvae", "run.silence_limit_s", value) for value in (1e300, float("inf"), float("nan"))),
        ("dalle-train-dvae", "images.shuffle_buffer", 10**12),
        *(
            ("dalle-train-clip", key, 10**12)
            for key in ("model.vision_width", "model.text_layers", "model.image_size_px")
        ),
        ("dalle-train-tokenizer", "vocabulary", 10**12),
        *(("dalle-tokenize", key, 10**12) for key in ("batch_size", "crops", "pairs_per_shard")),
        *(("dalle-sample", key, 10**12) for key in ("n", "processes", "sampling.chunk")),
        *(("dalle-caption", "batch_size", value) for value in (10**12, 1e12)),
        *(("dalle-dedup", "size_px", 10**12), ("dalle-evaluate", "n", 10**12), ("dalle-filter", "workers", 10**12)),
        *(
            ("dalle-train-dvae", f"optimizer.{key}", float("inf"))
            for key in ("weight_decay", "step_size.start", "epsilon")
        ),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_made(tmp_path, command, key, value):
    name = {"dalle-train-prior": "demo/prior", "dalle-train-dvae": "demo/dvae", "dalle-train-clip": "demo/clip"}.get(
        command
    )
    said = _try(tmp_path / "it.yaml", command, name, key, value)
    assert said is not None and key.rpartition(".")[2] in said and len(said) < 300, said


SEED = "which random numbers, and not how many"
MAY_BE_LARGE = {"seed": SEED, "cache_bytes": "a machine may have a terabyte of memory"}
"""Whole numbers that may be 10¹², and why."""


def _all_settings():
    """An instance of each command's settings, as in the example of its help, and of each shipped configuration, with what names it."""
    for command, program in PROGRAMS.items():
        yield command, arguments.parse(program.config, command, shlex.split(program.example)[1:], program.positional)
    for name in shipped.names():
        command = _command_of(name)
        program, line = PROGRAMS[command], [f"--{key}={value}" for key, value in _beside(command, name).items()]
        under = [f"--config={UNDER[name]}"] if name in UNDER else []
        yield name, arguments.parse(program.config, command, [*under, f"--config={name}", *line], program.positional)


def _beside(command: str, name: str) -> dict:
    """What has to be said beside a shipped configuration."""
    return {key: value for key, value in _values(command, name).items() if value == "x"}


def _of_type(kind, wanted: type) -> bool:
    """Whether a setting holds such numbers, alone, in a list, or where it is not something else."""
    return kind is wanted or any(_of_type(each, wanted) for each in typing.get_args(kind) if isinstance(each, type))


def _changed(settings, value: int):
    """(dotted key, what is made by setting it) of all whole numbers below some settings, those of sections that are null too."""
    kinds = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        held, inner = getattr(settings, field.name), shape.section(kinds[field.name])
        if inner is not None:
            for key, make in _changed(_filled(inner) if held is None else held, value):
                yield f"{field.name}.{key}", make
        elif _of_type(kinds[field.name], int):
            put = (value,) * max(1, len(held)) if isinstance(held, tuple) else value
            yield field.name, lambda name=field.name, put=put: dataclasses.replace(settings, **{name: put})


def _filled(cls: type):
    """A section that is null by default, with something in the place of what it has to be told."""
    needed = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
    kinds = typing.get_type_hints(cls)
    return cls(**{name: {int: 8, str: "x"}[kinds[name]] for name in needed if kinds[name] in (int, str)})


def test_every_whole_number_has_an_upper_bound():
    """Where a size is absurd nothing is made: no model, no list of shards, no table; and its key is named."""
    met, let_in, kept = set(), set(), set()
    for name, settings in _all_settings():
        for key, make in _changed(settings, 10**12):
            last = key.rpartition(".")[2]
            met.add(key)
            if last in MAY_BE_LARGE:
                kept.add(last)
                continue
            try:
                make()
                let_in.add((name, key))
            except ValueError as error:
                assert last in str(error) and "\n" not in str(error) and len(str(error)) < 300, (name, key, str(error))
    assert not let_in
    assert kept == set(MAY_BE_LARGE)
    listed = {
        key
        for program in PROGRAMS.values()
        for key, kind in shape.keys_of(program.config).items()
        if shape.section(kind) is None and _of_type(kind, int)
    }
    assert listed <= met  # so that none is left out


def test_every_number_with_a_fraction_has_one_that_fp32_holds():
    for program in PROGRAMS.values():
        for key, kind in shape.keys_of(program.config).items():
            if shape.section(kind) is not None or not _of_type(kind, float):
                continue
            for value in (1e300, -1e300):
                put = [value] if typing.get_origin(kind) is tuple else value
                values = _put({}, key, put)
                if key.endswith("max_aspect_ratio"):  # which an infinity switches off
                    shape.check_values(program.config, values)
                    continue
                told = rf"^{key} -?1e\+300: the products made with it would be infinite in fp32; give a number within ±1e\+30$"
                with pytest.raises(ValueError, match=told):
                    shape.check_values(program.config, values)


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("dalle-train-dvae", "--optimizer.weight_decay 1e300", "optimizer.weight_decay 1e+300: the products"),
        ("dalle-train-dvae", "--optimizer.weight_decay 1e20", "weight_decay 1e+20: times 0.004, the largest step size"),
        ("dalle-train-dvae", "--optimizer.epsilon 1e-300", "epsilon 1e-300: must be at least 1e-30"),
        ("dalle-train-dvae", "--model.min_ln_b=-1e4", "min_ln_b -10000.0: must lie between -80 and 80, or fp32 holds"),
        ("dalle-train-prior", "--optimizer.muon_step_size_factor 1e9 --optimizer.weight_decay 1", "weight_decay 1.0: times"),
        ("dalle-train-prior", "--optimizer.muon_step_size_factor 0.1 --optimizer.step_size.start 1 --optimizer.weight_decay 2",
         "weight_decay 2.0: times 1, the largest step size"),
        ("dalle-train-dvae", "--optimizer.step_size.end 100 --optimizer.weight_decay 0.1", "weight_decay 0.1: times 100, the"),
        ("dalle-train-prior", "--optimizer.step_size.start 1e31", "optimizer.step_size.start 1e+31: the products"),
        ("dalle-train-dvae", "--optimizer.step_size.start 1e4", "start 10000.0: must be at most 1,000"),
        ("dalle-train-dvae", "--optimizer.step_size.end=-1e-4", "end -0.0001: must be at least 0"),
        ("dalle-sample", "--caption x --sampling.guidance 1e300", "sampling.guidance 1e+300: the products"),
        ("dalle-sample", "--caption x --sampling.top_k 1000000000000", "top_k 1000000000000: must be at most 16,777,216"),
        ("dalle-draw-shapes", "--output x --num_train 1000000000000", "num_train 1000000000000: must be at most"),
        ("dalle-serve", "--seconds 1e20", "seconds 1e+20: must be at most"),
        ("dalle-train", "x --output x --minutes 1e20", "minutes 1e+20: must be at most"),
    ],
)  # fmt: skip
def test_absurd_options_are_named(command, words, said):
    name = {"dalle-train-prior": "demo/prior", "dalle-train-dvae": "demo/dvae"}.get(command)
    places = [f"--config={name}", "--data=x", "--output=x"] if name else []
    places += ["--dvae=x", "--tokenizer=x"] if command == "dalle-train-prior" else []
    with pytest.raises(ValueError) as refusal:
        arguments.parse(PROGRAMS[command].config, command, [*places, *words.split()], PROGRAMS[command].positional)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_number_in_quotes_is_looked_at_as_one_without():
    """As the options of a stage come to `dalle-train`."""
    for value in ("1e300", "inf", "nan"):
        with pytest.raises(ValueError, match=r"^dvae: model.post_gain (1e\+300: the products|inf: must|nan: must)"):
            arguments.parse_model(
                PROGRAMS["dalle-train-dvae"].config,
                {**_values("dalle-train-dvae", "demo/dvae"), "model": {"post_gain": value}},
                "dvae: ",
            )


def test_an_infinite_aspect_ratio_lets_all_through(tmp_path):
    assert _try(tmp_path / "it.yaml", "dalle-train-dvae", "demo/dvae", "images.max_aspect_ratio", float("inf")) is None
