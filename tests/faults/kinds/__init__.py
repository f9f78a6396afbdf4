"""All kinds of files that are damaged, by the file's name and what else tells it from others."""

from tests.faults.kinds import others, outputs
from tests.faults.kinds.kind import Kind

__all__ = ["KINDS", "Kind"]
KINDS = {**outputs.KINDS, **others.KINDS}
