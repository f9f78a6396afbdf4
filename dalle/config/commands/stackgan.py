"""The settings of `dalle-train-stackgan`."""

from __future__ import annotations

from dataclasses import dataclass, field

from dalle.config.checks import require
from dalle.config.run import Run
from dalle.config.stackgan import StackGANModel, StackGANObjective
from dalle.config.training import Images, Optimizer


@dataclass(frozen=True)
class TrainStackGAN:
    """Train a StackGAN, stage one or two, on image-text shards: what the autoregressive model is compared with.

    Args:
        data: training shards
        output: folder of the trained model, its generator
        text_encoder: who makes numbers of captions, by name or folder
        optimizer: optimizer of the generator; Adam where its weight_decay is 0
        discriminator_optimizer: optimizer of the discriminator
        run: how the training is run; `ema_decay` averages the generator, which is what is sampled
        valid_data: held-out shards, for pictures and figures of collapse; null takes training pairs
        resume: continue from the latest checkpoint in the output folder, whose config.yaml has all other settings
        dry_run: tell what the training would take on this machine, train nothing and write nothing
        stage_one: folder of a trained stage one, whose images stage two begins with
        embeddings: file that keeps the numbers of captions from run to run; null keeps them in the output folder
        class_key: key of the samples' json whose values are classes, such as `name` or `class`: a wrong caption comes from another
            class; null takes one of a sample that shares no caption
        stop_on_collapse: end the run when the discriminator has won, the generator is lost, or all images are alike, for a tenth of
            the run
        model: sizes
        objective: losses
        images: which pairs are kept, and their augmentation
    """

    data: str
    output: str
    text_encoder: str
    optimizer: Optimizer
    discriminator_optimizer: Optimizer
    run: Run
    valid_data: str | None = None
    resume: bool = False
    dry_run: bool = False
    stage_one: str | None = None
    embeddings: str | None = None
    class_key: str | None = None
    stop_on_collapse: bool = False
    model: StackGANModel = field(default_factory=StackGANModel)
    objective: StackGANObjective = field(default_factory=StackGANObjective)
    images: Images = field(default_factory=lambda: Images(augmentation="prior"))

    def __post_init__(self) -> None:
        _check_players(self.run)
        for name, optimizer in (
            ("optimizer", self.optimizer),
            ("discriminator_optimizer", self.discriminator_optimizer),
        ):
            require(
                optimizer.muon_step_size_factor is None,
                f"{name}.muon_step_size_factor {optimizer.muon_step_size_factor}: Muon is for the matrices of transformers, and a "
                "GAN has none; leave it null",
            )
            require(
                optimizer.plateau is None,
                f"{name}.plateau: the loss of a GAN has no plateau that means anything; leave it null, and lower the step size by its "
                "schedule",
            )
        require(
            self.model.stage == 1 or self.stage_one is not None,
            "model.stage 2: begins with stage one's images; name the folder of a trained stage one with --stage_one",
        )
        require(
            self.model.stage == 2 or self.stage_one is None,
            f"stage_one {self.stage_one}: is for model.stage 2, and this is stage 1; leave it out",
        )
        require(
            self.objective.penalty_weight == 0 or self.model.discriminator_norm == "none",
            f"objective.penalty_weight {self.objective.penalty_weight} with model.discriminator_norm batch: the gradient of one image "
            "would depend on the others; set model.discriminator_norm to none",
        )
        least = 2 * self.run.accumulation_steps
        require(
            self.run.batch_size >= least,
            f"run.batch_size {self.run.batch_size}: must be two or more, which batch normalisation and wrong captions take, for each of "
            f"{self.run.accumulation_steps} accumulation_steps",
        )


def _check_players(run: Run) -> None:
    """What a training of two players does not know."""
    for name, found, allowed, instead in (
        ("zero_stage", run.zero_stage, run.zero_stage == 0, "0"),
        ("precision", run.precision, run.precision in ("fp32", "bf16"), "fp32 or bf16"),
        ("compression", run.compression, run.compression is None, "null"),
        ("weights", run.weights, run.weights == "fp32", "fp32"),
        ("wire", run.wire, run.wire == "fp32", "fp32"),
        ("recompute", run.recompute, not run.recompute, "false"),
        ("compile", run.compile, not run.compile, "false"),
    ):
        require(allowed, f"run.{name} {found}: two players of a GAN are trained without it; set it to {instead}")
