"""Refusals of trainings and of several processes that other tests raise in processes of their own, or not at all."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import torch

from dalle.checkpoints import checkpoint, rank_file, starting
from dalle.cli import demo, describe, road
from dalle.cluster import agreement, topology
from dalle.config import Demo, Run
from dalle.evaluation.steps import run as evaluation_run
from dalle.gradients.before_step import BeforeStep
from dalle.gradients.scaling import GradientScales
from dalle.models.text_encoders import bert
from dalle.own.needs import check_room
from dalle.reporting import weights_and_biases
from dalle.sampling import again
from dalle.sampling.adversarial import gan_set
from dalle.sampling.adversarial.gan_pipeline import GANPipeline
from dalle.stages.best_of import drawing, prompts
from dalle.training import loop
from tests.errors.refused import refused


def test_parts_of_checkpoints(tmp_path):
    refused("nothing holds elements 1 to 2 of w", checkpoint.check_parts, "w", (2,), [("a", "w@0", 0, 1)])
    refused(
        "of w two parts hold element 1, or one reaches",
        checkpoint.check_parts,
        "w",
        (2,),
        [("a", "", 0, 2), ("b", "", 1, 2)],
    )
    part = SimpleNamespace(name="w", values=torch.ones(2), start=0, shape=(2,))
    record = rank_file.write_fragments(tmp_path / "a", [part])
    target = tmp_path / "all" / "step-0000001"
    refused(f"a is not seen here as it was written: all machines have to share {target.parent}",
            checkpoint._complete, tmp_path, target, 1, {}, {"a": record | {"bytes": 1}})  # fmt: skip
    folder = tmp_path / "step-0000001"
    refused(
        f"{folder} is not a complete checkpoint: it holds no state.json; name another", checkpoint._read_index, folder
    )
    folder.mkdir()
    state = folder / checkpoint.STATE
    for text, said in (
        ("[]", f"checkpoint {folder} is damaged: state.json: it is not a mapping of names to values; start anew"),
        ("{}", f"checkpoint {folder} was written by another version of this program: read it with that one"),
        (
            '{"tensors": {}, "sha256": "x"}',
            f"checkpoint {folder} is damaged: state.json: its hash is not the one it was written with",
        ),
    ):
        state.write_text(text)
        refused(said, checkpoint._read_index, folder)
    found = SimpleNamespace(path=folder, files={"a": {"bytes": 3, "sha256": "x"}})
    refused(
        f"checkpoint {folder} is damaged: a: No such file or directory; start anew", checkpoint._check_size, found, "a"
    )
    (folder / "a").write_bytes(b"1234")
    refused(f"checkpoint {folder} is damaged: a has 4 bytes, not 3; start anew", checkpoint._check_size, found, "a")
    opened = checkpoint.Checkpoint(folder, 1, {}, {}, {}, {})
    refused(f"checkpoint {folder} holds no tensor w: give one of the model that is trained", opened.dtype, "w")
    file = SimpleNamespace(path="m", tensors={}, metadata={}, content_hash=lambda: "h")
    pieces = {"w": ((2,), 0, torch.zeros(2))}
    refused("m is of another model: ", starting._order, file, pieces, {})
    refused(
        "m is damaged: its weights are not those that were written; copy it or export it",
        starting._order,
        file,
        {},
        None,
    )


def test_processes_that_differ(monkeypatch):
    world = SimpleNamespace(size=2, machines=None)
    world.gather = lambda mine: [mine, "other"] if isinstance(mine, str) else [mine, ({"torch": "1"}, "b", 2)]
    refused("rank 1 (host b, process 2): torch 1 differs from rank 0's 2: install and start the same on every machine",
            agreement.check_same, world, {"torch": "2"})  # fmt: skip
    world = SimpleNamespace(size=3, machines=None, gather_int=lambda mine: [mine, mine, mine + 1])
    refused("the weights of rank 2 of 3 differ from those of others that should hold the same: look for a faulty GPU",
            agreement.check_same_weights, world, [torch.zeros(2)], False)  # fmt: skip
    refused("run.ranks_per_machine 3: does not divide the 4 processes; start as many on every machine",
            topology._ranks_per_machine, Run(steps=1, batch_size=4, ranks_per_machine=3), SimpleNamespace(size=4))  # fmt: skip


def test_stages_as_commands(tmp_path):
    refused(
        "no-such-command: no such command: install the package's dependencies, deepspeed among them",
        road._launch,
        ["no-such-command"],
    )
    failing = [sys.executable, "-c", "raise SystemExit(3)"]
    refused(f"{' '.join(failing)}: ended with exit code 3; see what it said above", road._launch, failing)
    config = Demo(configs=str(tmp_path))
    refused(f"configs {tmp_path}: no dvae.yaml there; name the folder with --configs", demo._stage, config, "dvae", {})
    (tmp_path / "a.yaml").write_text("run: {steps: 3}")
    refused(
        f"{tmp_path}/a.yaml has no section `model`; name the configuration of a training",
        describe.describe_file,
        f"{tmp_path}/a.yaml",
    )
    for model, told in (
        ("{first_widths: [1]}", "model.first_widths [1]: must be a list of whole numbers"),
        ("{first_widths: [0, 1]}", "first_widths [0, 1]: must be two positive numbers"),
        ("{width_multipliers: []}", "width_multipliers: needs at least one group"),
        ("{depth: 1:30}", "model.depth 1:30: must be a whole number"),
        ("{class_path: stranger.Thing}", "unknown key model.class_path; the nearest known one is model.image_size_px"),
    ):
        (tmp_path / "b.yaml").write_text(f"model: {model}")
        refused(f"{tmp_path}/b.yaml: {told}", describe.describe_file, f"{tmp_path}/b.yaml")


def test_gradients_and_resuming(monkeypatch):
    step = SimpleNamespace(_num_shards=2, shards=SimpleNamespace(pieces={"w": torch.zeros(3, 4)}))
    refused(
        "run.compression with 2 processes a machine: w has 3 rows, which do not divide by them; set "
        "run.compression to null, or run.ranks_per_machine to what divides them",
        BeforeStep._rows,
        step,
        "w",
        1,
    )
    scales = SimpleNamespace(_scale=torch.ones(3))
    refused("the checkpoint holds 2 gradient scales, this run has 3: set run.precision back to what it was",
            GradientScales.load_state_dict, scales, {"scale": torch.ones(2)})  # fmt: skip
    said = []
    training = SimpleNamespace(
        world=SimpleNamespace(gather=lambda mine: [mine]), telemetry=SimpleNamespace(warn=said.append), step=7,
        engine=SimpleNamespace(scales=None), _save_checkpoint=lambda: None,
    )  # fmt: skip
    refused("the last 9 updates up to 7 were skipped: the loss was not finite on rank 0 in 9. Weights and moments are as",
            loop._Training._explain, training, [torch.tensor(False)] * 9, 9, 9, 10**6)  # fmt: skip
    assert said == ["9 of the 9 updates up to 7 were skipped: the loss was not finite on rank 0 in 9"]


def test_room_for_a_plan():
    machine = SimpleNamespace(free_disk_bytes=10**9, memory_bytes=10**9, is_cpu=True)
    refused("output o: the training writes about 2.0 GB and 1.0 GB are free: make room, or name an --output on another disk",
            check_room, machine, 0, 2 * 10**9, "o")  # fmt: skip
    refused("memory: this plan takes about 2.0 GB of main memory, of which there are 1.0 GB: set --prior.run.batch_size",
            check_room, machine, 2 * 10**9, 0, "o")  # fmt: skip


def test_weights_and_biases(monkeypatch):
    settings = SimpleNamespace(project="p", name=None, mode="online")
    monkeypatch.setitem(sys.modules, "wandb", None)
    refused("wandb is switched on but not installed: `pip install wandb`, or switch it off",
            weights_and_biases.start_run, settings, "t", "f", None)  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=_fails))
    refused("wandb is switched on but did not start (no key): log in with `wandb login`, set its mode to offline, or switch it off",
            weights_and_biases.start_run, settings, "t", "f", None)  # fmt: skip


def _fails(**_):
    raise RuntimeError("no key")


def test_best_of(monkeypatch):
    shards = SimpleNamespace(
        folder="d", place=lambda number, seed: (0, 0, number), pair=lambda *_: (None, []), __len__=lambda: 1
    )
    refused("best_of: no pair of d has a caption to draw", prompts.choose_captions, _Sized(shards), 1, 0)
    monkeypatch.setattr(drawing, "check", lambda *_: None)
    monkeypatch.setattr(drawing, "read_mark", lambda *_: {"keep": 2, "data": "x"})
    refused("f: holds candidates made with other settings (best_of.keep was 2, is 1): name another --output",
            drawing._check_folder, "f", {"keep": 1})  # fmt: skip
    refused("f: holds candidates made with other settings (the data were others): name another --output",
            drawing._check_folder, "f", {"data": "y"})  # fmt: skip


class _Sized:
    """Shards that hold one pair without a caption."""

    def __init__(self, shards):
        self.folder, self.place, self.pair = shards.folder, shards.place, shards.pair

    def __len__(self):
        return 1


def test_a_gan_reads_no_codes(monkeypatch, tmp_path):
    gan = SimpleNamespace()
    refused(
        "an image prompt is made of codes, and this model is a GAN, which has none; leave it out",
        GANPipeline.check_prompt,
        gan,
        None,
    )
    refused(
        "shortlist: reads codes, and this model is a GAN, which has none; leave it out",
        GANPipeline.read,
        gan,
        ["a"],
        True,
    )
    monkeypatch.setattr(gan_set, "read_config", lambda *_: SimpleNamespace(stage=2))
    monkeypatch.setattr(
        gan_set, "read_header", lambda *_: {"hash": "h", "text_encoder_hash": "t", "stage_one_hash": "s"}
    )
    refused(
        f"model {tmp_path}: its stage_one/ holds a stage 2, not a stage 1; put one there", gan_set.find_gan, tmp_path
    )


def test_no_memory_for_the_same_chunk():
    def chunk(*_):
        raise MemoryError

    pipeline = SimpleNamespace(device=torch.device("cpu"), read=lambda captions: captions, chunk=chunk)
    told = SimpleNamespace(settings={"chunk": 8, "place": 0, "captions_together": 1, "threads": 1}, caption="a", seed=0)
    refused("out of memory with 8 candidates at a time, with which it was drawn: another width would draw other bits; free memory",
            again.draw_again, pipeline, told)  # fmt: skip


def test_berts(tmp_path, monkeypatch):
    model = torch.nn.Linear(1, 1)
    model.config = SimpleNamespace(is_encoder_decoder=True, model_type="t5")
    tokenizer = SimpleNamespace(model_max_length=9, pad_token=None)
    library = SimpleNamespace(
        AutoTokenizer=SimpleNamespace(from_pretrained=lambda *_, **__: tokenizer),
        AutoModel=SimpleNamespace(from_pretrained=lambda *_, **__: model),
        utils=None,
    )
    monkeypatch.setattr(bert, "_transformers", lambda: library)
    monkeypatch.setattr(bert, "_quiet", lambda _: nullcontext())
    refused(f"{tmp_path} holds no model of transformers in safetensors", bert.bert, str(tmp_path), "first", "cpu")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("")
    refused(
        f"{tmp_path} holds a t5, which is no encoder of the BERT family; name one",
        bert.bert,
        str(tmp_path),
        "first",
        "cpu",
    )
    model.config = SimpleNamespace(hidden_size=1)
    refused(
        f"{tmp_path} has no padding token, so it is no encoder of the BERT family",
        bert.bert,
        str(tmp_path),
        "first",
        "cpu",
    )


def test_images_of_another_manifest(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation_run, "find_sources", lambda *_: SimpleNamespace(identities=dict, models=None))
    monkeypatch.setattr(evaluation_run.manifests, "check_identities", lambda *_: None)
    monkeypatch.setattr(evaluation_run.manifests, "other_samples", lambda *_: ["the samples are others"])
    monkeypatch.setattr(evaluation_run, "Evaluation", lambda *_: SimpleNamespace(sample_hash=lambda: "h"))
    refused("manifest m.json: the samples are others; name the images that it was made of",
            evaluation_run.run, SimpleNamespace(images="i", model=None), tmp_path, {"captions": [], "path": "m.json"}, print)  # fmt: skip
