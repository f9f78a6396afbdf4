"""The gradient scales of a prior's resblocks over time, as in the paper's Figure 12."""

from __future__ import annotations

from typing import Any

import numpy as np

from dalle.reporting.plots import MAX_SCALE_POINTS, SCALE_COLOURS, finite, plot, svg, thin


def scales_section(records: list[dict[str, Any]]) -> str:
    """All resblocks' gradient scales in one plot, as in the paper's Figure 12."""
    lines = [record for record in records if isinstance(record.get("gradient_scales"), list)]
    count = len(lines[-1]["gradient_scales"]) if lines else 0
    if not count:
        return ""
    lines = [line for line in lines if len(line["gradient_scales"]) == count]
    steps = [line["step"] for line in lines]
    scales = np.array([line["gradient_scales"] for line in lines], dtype=float)

    def curves(axes: Any) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        colours = LinearSegmentedColormap.from_list("first to last", SCALE_COLOURS)(np.linspace(0, 1, count))
        for log2_scale, colour in zip(scales.T, colours, strict=True):
            rows = finite(np.stack([steps, log2_scale], axis=1))
            plot(axes, thin(rows, MAX_SCALE_POINTS), colour, linewidth=0.7 if count > 16 else 1.2)

    last = finite(np.stack([np.arange(count), scales[-1]], axis=1))[:, 1]
    notes = f'first<span class="first-to-last"></span>last of {count}' if count > 1 else "one for the whole model"
    if len(last):
        notes += f" &nbsp; now {last.min():.4g} to {last.max():.4g}" if count > 1 else f" &nbsp; now {last[0]:.4g}"
    caption = f"<figcaption><b>log2 of the gradient scale{' of each resblock' if count > 1 else ''}</b><i>{notes}</i></figcaption>"
    return f'<h2>Gradient scales</h2><figure class="wide">{caption}{svg("gradient scales", 12, 3.6, curves)}</figure>'
