"""A gallery whose images lie in an evaluation's layout, for `dalle-sample --layout geneval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dalle.evaluation.layout import prompt_folder, read_metadata, sample_path, write_prompt
from dalle.sampling.drawing import Drawing, best_first
from dalle.sampling.gallery import Gallery


class LayoutGallery(Gallery):
    """Shows and resumes what a `Gallery` does. The images of a prompt are written once all its candidates are drawn, and the
    metadata of all prompts before the page, so that a run that was stopped is seen by whoever reads the folder.

    Args:
        folder, title, extra: as of a gallery
        prompts: metadata in the order of the folders; those of one caption have the same images
        candidates: of each prompt
        keep: the most images of a prompt; the best of all candidates, each as often as it was drawn, for a measure must not take a
            model for more varied than it is
        overwrite: the folder may hold other prompts

    Raises:
        ValueError: the folder holds other prompts, or more of them
    """

    layout = "geneval"
    shows_equal_once = False

    def __init__(
        self,
        folder: Path,
        title: str,
        extra: dict[str, str] | None = None,
        *,
        prompts: list[dict[str, Any]],
        candidates: int,
        keep: int,
        overwrite: bool = False,
    ):
        super().__init__(folder, title, extra)
        self._prompts, self._candidates, self._keep = prompts, candidates, keep
        self._numbers: dict[str, list[int]] = {}
        for number, metadata in enumerate(prompts):
            self._numbers.setdefault(" ".join(metadata["prompt"].split()), []).append(number)
        self._written = self._find_written(overwrite)
        self._begun = False

    def files(self, caption: str, place: int, drawing: Drawing) -> list[str]:
        return [self._file(number, place) for number in self._numbers[caption]]

    def put(self, caption: str, drawings: list[Drawing], candidates: int | None = None) -> None:
        if candidates != self._candidates:
            return
        self._begin()
        each = [drawing for drawing in best_first(drawings) for _ in range(drawing.times)]
        super().put(caption, each[: self._keep], candidates)

    def resume(self, candidates: int) -> set[str]:
        super().resume(candidates)
        whole = {caption for caption in self._sections if self._is_whole(caption)}
        self._sections = {caption: section for caption, section in self._sections.items() if caption in whole}
        return whole

    def write(self) -> None:
        self._begin()
        super().write()

    def _begin(self) -> None:
        """Once, before anything is written: all metadata, and no images but those that are resumed. So none ever lies beside
        another prompt, or those of another request beside these."""
        if self._begun:
            return
        for caption, numbers in self._numbers.items():
            for number in numbers:
                for stale in (prompt_folder(self.folder, number) / "samples").glob("[0-9]*.png"):
                    if caption not in self._sections:
                        stale.unlink()
                if number not in self._written:
                    write_prompt(self.folder, number, self._prompts[number])
        self._begun = True

    def _file(self, number: int, place: int) -> str:
        return sample_path(self.folder, number, place).relative_to(self.folder).as_posix()

    def _is_whole(self, caption: str) -> bool:
        """Whether what the results tell of a caption lies where it now belongs."""
        files, numbers = self._sections[caption].files, self._numbers.get(caption, [])
        return (
            bool(numbers)
            and files == [self._file(numbers[0], place) for place in range(len(files))]
            and self._written.issuperset(numbers)
            and all((self.folder / self._file(n, place)).is_file() for n in numbers for place in range(len(files)))
        )

    def _find_written(self, overwrite: bool) -> set[int]:
        """The prompts that are there as they should be."""
        written = set()
        for path in sorted(self.folder.glob("[0-9]*")):
            number = int(path.name) if path.name.isdecimal() else -1
            if path != prompt_folder(self.folder, number) or number >= len(self._prompts):
                raise ValueError(
                    f"output {self.folder}: holds {path.name}, which is none of these {len(self._prompts)} prompts; name "
                    "another folder with --output"
                )
            file = path / "metadata.jsonl"
            if not file.is_file():  # stopped before it was written
                continue
            if read_metadata(file) == self._prompts[number]:
                written.add(number)
            elif not overwrite:
                raise ValueError(
                    f"{file}: is of another prompt; name another folder with --output, or write over it with --overwrite"
                )
        return written
