"""What `dalle-sample` is asked for."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Literal

from dalle.config.checks import MOST_ASKED, MOST_PROCESSES, at_least, at_most, require
from dalle.config.sampling import DEFAULT_MODEL, Sampling, check_shortlist


@dataclass(frozen=True)
class Sample:
    """Draw candidates for a caption, rank them, and write the best as a grid and a gallery.

    Args:
        caption: what to draw; left out where `captions`, `variations_of` or `again` tells
        captions: a file with one caption a line, or a .jsonl file of objects with a "caption" or a "prompt". Each is drawn by itself, and a
            run that was stopped goes on where it was when it is given the same output folder
        model: what draws: a ready model by its name, such as icons; a folder with `prior/`, `dvae/` and, for reranking, `clip/`
            in it; `owner/name[@revision]` of the Hugging Face Hub; or the folder of dalle-train-stackgan
        list: tell the ready models, and leave it at that
        output: folder of the gallery
        layout: layout of that folder: "gallery", or "geneval", which writes the images of each of the `captions` as
            00000/samples/0000.png and so on, best first, with the line of the file as 00000/metadata.jsonl, for
            `dalle-evaluate --images` and graders from elsewhere
        n: candidates of each caption
        keep: how many of the best are kept; those that came out the same are one, shown with how often it came
        seed: seed of the first candidate; candidate i has seed + i
        rerank: rank by CLIP; null ranks where the model has a reranker, false leaves candidates in the order of their seeds
        clip: reranker in place of the model's: a folder, or ARCHITECTURE:PRETRAINED of open_clip
        shortlist: how many of n are decoded and ranked by CLIP: the best by a CLIP that reads codes, of those that differ; null
            decodes all
        codes_clip: reader of codes in place of the model's `codes-clip/`: a folder of dalle-train-clip --model.reads codes
        dvae: dVAE in place of the model's: its folder, or a model by name, whose dVAE is meant
        prior: prior in place of the model's: its folder, or a model by name
        text_encoder: text encoder of a StackGAN, where it lies now; null takes the name that it was trained with
        prompt_image: an image of which some is kept; it takes `rows` or `region`
        variations_of: a PNG that dalle-sample drew, in place of `prompt_image`; its caption is drawn where none is given
        rows: token rows that are kept of the image, from the top
        region: "left,top,right,bottom" in pixels of the image: only the cells that it touches are drawn, all else is kept. Codes
            are drawn in raster order, so what is drawn does not see what comes after it, right of or below the region
        again: a PNG of ours: draw the very same once more, from what its metadata tell; takes no other option than the
            folders of the models, the output and `overwrite`
        overwrite: write over drawings of another request, or files of their names, that the folder holds
        processes: number of processes that share the candidates; null means one for each GPU, or one where there is none
        sampling: how candidates are drawn: temperature, filters, guidance, chunk, precision
    """

    caption: str = ""
    captions: str | None = None
    model: str = DEFAULT_MODEL
    list: bool = False
    output: str = "samples"
    layout: Literal["gallery", "geneval"] = "gallery"
    n: int = 32
    keep: int = 16
    seed: int = 0
    rerank: bool | None = None
    clip: str | None = None
    shortlist: int | None = None
    codes_clip: str | None = None
    dvae: str | None = None
    prior: str | None = None
    text_encoder: str | None = None
    prompt_image: str | None = None
    variations_of: str | None = None
    rows: int = 0
    region: str | None = None
    again: str | None = None
    overwrite: bool = False
    processes: int | None = None
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        at_least(self, 1, "n", "keep", most=MOST_ASKED)
        at_most(self, MOST_PROCESSES, "processes")
        at_least(self, 0, "rows", most=2**14)
        require(abs(self.seed) < 2**62, f"seed {self.seed}: must lie between −2⁶² and 2⁶²")
        require(
            self.processes is None or self.processes >= 1, f"processes {self.processes}: must be at least 1, or null"
        )
        if self.list:
            return
        if self.again is not None:
            self._check_again()
            return
        require(not self.caption or bool(self.caption.strip()), "caption: is empty; say what to draw")
        require(
            not self.caption or self.captions is None,
            "caption and captions: give one of them, the caption itself or the file of many",
        )
        require(
            bool(self.caption) or self.captions is not None or self.variations_of is not None,
            "caption: is missing or empty; give --caption (or --captions FILE, --variations-of FILE.png, --again FILE.png)",
        )
        require(
            self.layout == "gallery" or self.captions is not None,
            f"layout {self.layout}: has a folder for each caption of a file; give --captions FILE",
        )
        require(
            self.rerank is not False or self.clip is None,
            f"rerank false and clip {self.clip}: it would rank nothing; leave one of them out",
        )
        if self.rerank is False:
            self.check_unranked()
        self._check_image()
        self._check_shortlist()

    def _check_shortlist(self) -> None:
        check_shortlist(self.shortlist, self.n)
        require(
            self.shortlist is None or self.rerank is not False,
            f"shortlist {self.shortlist}: is of what CLIP ranks by pixels; leave --rerank false out",
        )
        require(
            self.codes_clip is None or self.shortlist is not None,
            f"codes_clip {self.codes_clip}: makes a shortlist; say how many with --shortlist, or leave codes_clip out",
        )

    def check_unranked(self) -> None:
        """Raises ValueError where what is asked for takes a reranker, once it is known that there is none."""
        require(
            self.layout == "gallery" or self.keep >= self.n,
            f"layout {self.layout} with n {self.n} and keep {self.keep}: without a reranker none is better than another; set keep "
            "to n, or rank",
        )

    def _check_again(self) -> None:
        for option in fields(self):
            if option.name not in ("again", "model", "dvae", "prior", "text_encoder", "output", "overwrite"):
                default = option.default if option.default_factory is MISSING else option.default_factory()
                require(
                    getattr(self, option.name) == default,
                    f"again and {option.name}: the file tells all that decides its pixels; leave {option.name} out",
                )

    def _check_image(self) -> None:
        require(
            self.prompt_image is None or self.variations_of is None,
            "prompt_image and variations_of: give one of them",
        )
        image = "prompt_image" if self.variations_of is None else "variations_of"
        given, parts = getattr(self, image) is not None, (self.rows > 0) + (self.region is not None)
        require(parts < 2, "rows and region: give one of them, the rows to keep or the region to draw")
        require(
            given == (parts == 1),
            f"{image} and rows: give both for an image prompt, the file and how many token rows to keep (or, in place of rows, "
            "the region to draw)",
        )
        if self.region is not None:
            self.region_px()

    def region_px(self) -> tuple[int, int, int, int] | None:
        """The region as numbers. Raises ValueError when it is no region."""
        if self.region is None:
            return None
        try:
            x0, y0, x1, y1 = (int(part) for part in self.region.split(","))
        except ValueError:
            raise ValueError(f"region {self.region}: must be four whole numbers, left,top,right,bottom") from None
        require(x0 < x1 and y0 < y1, f"region {self.region}: is empty; give left,top,right,bottom in pixels")
        require(
            x0 >= 0 and y0 >= 0,
            f"region {self.region}: begins outside the image; give left,top,right,bottom in pixels, none negative",
        )
        return x0, y0, x1, y1
