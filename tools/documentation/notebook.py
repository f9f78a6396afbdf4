"""A notebook as a page: its text, its code, and the pictures that were last drawn by it."""

from __future__ import annotations

import base64
import json
from pathlib import Path


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Markdown, and the files that it shows by their names."""
    parts: list[str] = []
    files: dict[str, bytes] = {}
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for place, output in enumerate(cell["outputs"]):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{number}-{place}.png"
                files[name] = base64.b64decode(data["image/png"])
                parts.append(f"![what the cell above shows]({name})")
            elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts) + "\n", files
