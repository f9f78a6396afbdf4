"""What a caption claims: the objects it names, how they stand to each other, and where; kept in a shard so that a drawing can be judged."""

from dataclasses import asdict, dataclass

from dalle.data.shapes.scene import ARRANGEMENTS, COLOURS, POSITIONS, SHAPES, SIZES, Scene


@dataclass(frozen=True)
class ClaimedObject:
    """An object as a caption names it; `size` is None where the caption leaves it open."""

    shape: str
    colour: str
    size: str | None = None


@dataclass(frozen=True)
class Claim:
    """The facts all wordings of a scene's caption share. The background is not among them: a caption may mention it, none is judged on it."""

    objects: tuple[ClaimedObject, ...]
    arrangement: str = "alone"
    position: str | None = None

    def __post_init__(self) -> None:
        if self.arrangement not in ARRANGEMENTS:
            raise ValueError(f"arrangement {self.arrangement!r}: must be one of {', '.join(ARRANGEMENTS)}")
        needed = 1 + max((max(i, j) for _, i, j in self.relations), default=0)
        if len(self.objects) != needed:
            raise ValueError(
                f"arrangement {self.arrangement!r} is of {needed} objects, not {len(self.objects)}; name so many"
            )
        if self.position is not None and (self.position not in POSITIONS or needed != 1):
            raise ValueError(f"position {self.position!r}: must be one of {', '.join(POSITIONS)}, and of a lone object")
        for thing in self.objects:
            if thing.shape not in SHAPES or thing.colour not in COLOURS or thing.size not in (None, *SIZES):
                raise ValueError(
                    f"{thing}: must be of the shapes {', '.join(SHAPES)}; of the colours {', '.join(COLOURS)}; of the sizes {', '.join(SIZES)}"
                )

    @property
    def relations(self) -> tuple[tuple[str, int, int], ...]:
        """(relation, i, j): object i stands in the relation, "left of" or "above", to object j."""
        return ARRANGEMENTS[self.arrangement]

    @classmethod
    def of(cls, scene: Scene) -> "Claim":
        """What the captions of this scene claim."""
        objects = tuple(ClaimedObject(o.shape, o.colour, o.size if o.size_stated else None) for o in scene.objects)
        return cls(objects, scene.arrangement, scene.position if scene.position_stated else None)

    def to_json(self) -> dict:
        """Plain dicts, lists and strings; `relations` is there for readers of the shard and is not read back."""
        relations = [list(relation) for relation in self.relations]
        return {**asdict(self), "objects": [asdict(thing) for thing in self.objects], "relations": relations}

    @classmethod
    def from_json(cls, data: dict) -> "Claim":
        """The inverse of to_json. ValueError names what is missing or unknown."""
        try:
            objects = tuple(ClaimedObject(o["shape"], o["colour"], o.get("size")) for o in data["objects"])
            return cls(objects, data["arrangement"], data.get("position"))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"not a claim of the drawn data set ({error!r}): {data!r}; make it with Claim.to_json"
            ) from error
