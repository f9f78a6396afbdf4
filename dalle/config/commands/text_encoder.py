"""The command that trains a char-CNN-RNN."""

from __future__ import annotations

from dataclasses import dataclass, field

from dalle.config.checks import require
from dalle.config.commands.stages import check_prior_only
from dalle.config.run import Run
from dalle.config.stackgan import CharCNNRNNModel
from dalle.config.training import Images, Optimizer


@dataclass(frozen=True)
class TrainTextEncoder:
    """Train a char-CNN-RNN, which reads captions letter by letter, to find the images of their class (Reed et al., 2016).

    Every batch is of so many different classes, with one image and one caption of each. The images' features are those of a
    network that stays as it is, computed once at the start and kept in memory.

    Args:
        data: training shards
        output: folder of the trained model, which `chars:FOLDER` then names
        class_key: what the json of a sample calls its class or concept: `class` in shards of CUB-200-2011, `name` in emoji
        features: what the images' features are of: efficientnet-lite0, clip:FOLDER, or another that `dalle-evaluate` knows
        valid_data: held-out shards; null means no validation
        resume: continue from the latest checkpoint in the output folder, whose config.yaml has all other settings
        dry_run: tell what the training would take on this machine, train nothing and write nothing
        images: which pairs are kept; there is no augmentation
    """

    data: str
    output: str
    optimizer: Optimizer
    run: Run
    class_key: str = "class"
    features: str = "efficientnet-lite0"
    valid_data: str | None = None
    resume: bool = False
    dry_run: bool = False
    model: CharCNNRNNModel = field(default_factory=CharCNNRNNModel)
    images: Images = field(default_factory=lambda: Images(augmentation="none"))

    def __post_init__(self) -> None:
        require(
            self.optimizer.muon_step_size_factor is None,
            f"optimizer.muon_step_size_factor {self.optimizer.muon_step_size_factor}: Muon is for the matrices of "
            "transformers, and a char-CNN-RNN has none; leave it null",
        )
        check_prior_only(self.run, precisions=("fp32", "bf16"))
        require(
            self.run.accumulation_steps == 1,
            f"run.accumulation_steps {self.run.accumulation_steps}: the classes of a batch are told from one another, so it "
            "cannot be taken apart; set it to 1",
        )
        require(
            self.run.batch_size >= 2,
            f"run.batch_size {self.run.batch_size}: a class is learned by telling it from the others of its batch; take "
            "two or more",
        )
        require(
            self.images.augmentation == "none",
            f"images.augmentation {self.images.augmentation}: an image's features are computed once; set it to none",
        )
