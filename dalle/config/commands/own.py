"""What `dalle-train` is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from dalle.config.checks import MOST_ASKED, at_least, at_most, require
from dalle.config.commands.data import Filters


@dataclass(frozen=True)
class TrainFolder:
    """Train all models on a folder of pictures with captions: looks at them, plans, trains every stage, draws, and writes a page
    that tells it. Called again it goes on where it was.

    Args:
        source: a folder of images with captions, a table that names both, or shards
        output: folder of everything: the data, the plan, the models, the gallery, and report.html
        minutes: total time budget in minutes; null takes what the pictures deserve, eight hours at most, and says so
        start_from: ready weights that training starts from, in place of nothing, also --from: a name, a folder of models, or an
            id of the Hugging Face Hub. Their tokenizer, codes and sizes are taken; the dVAE's encoder stays as it is
        freeze: what stays as it is in `start_from`: "prior" trains the dVAE's decoder alone, "decoder" trains the prior alone;
            null trains both
        filters: what is left out of the pictures, as in dalle-filter
        captions: where captions are, as in dalle-filter: "files" beside the images, a "table", the images' "names" or their
            "folders"; null looks
        image_column: column of a table that names the image files; null looks for the usual names
        caption_column: column of a table that holds the captions; null looks for the usual names
        valid_share: share of the pairs that is held out; none where there are too few
        candidates: candidates drawn for each caption of the gallery, at most; the best are shown
        seed: seed of the split, all trainings, and drawing
        plan_only: stop after the plan is written
        tokenizer: settings of dalle-train-tokenizer in place of the plan's, such as --tokenizer.vocabulary 1024
        dvae: settings of dalle-train-dvae in place of the plan's, such as --dvae.run.steps 4000
        tokens: settings of dalle-tokenize in place of the plan's, such as --tokens.crops 4
        prior: settings of dalle-train-prior in place of the plan's, such as --prior.model.width 256
        clip: settings of dalle-train-clip in place of the plan's
    """

    source: str
    output: str
    minutes: float | None = None
    start_from: str | None = None
    freeze: Literal["decoder", "prior"] | None = None
    filters: Filters = field(default_factory=Filters)
    captions: Literal["files", "table", "names", "folders"] | None = None
    image_column: str | None = None
    caption_column: str | None = None
    valid_share: float = 0.05
    candidates: int = 32
    seed: int = 0
    plan_only: bool = False
    tokenizer: dict[str, Any] = field(default_factory=dict)
    dvae: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, Any] = field(default_factory=dict)
    prior: dict[str, Any] = field(default_factory=dict)
    clip: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least(self, 1, "candidates", most=MOST_ASKED)
        at_most(self, 1e7, "minutes")
        at_least(self, 0, "seed")
        require(self.minutes is None or self.minutes > 0, f"minutes {self.minutes}: must be positive")
        require(0 <= self.valid_share < 1, f"valid_share {self.valid_share}: must lie in [0, 1)")
        require(
            self.freeze is None or self.start_from is not None,
            f"freeze {self.freeze}: is of ready weights; name them with --from",
        )
