"""The plot of `clip-la bench kernels`: time against tokens, both on logarithmic axes."""

import csv
import os
from collections import defaultdict
from pathlib import Path

from clip_la.errors import UserError

# Matplotlib's cycle of colors; beyond it lines are dashed.
COLORS = 10
PANELS = (("forward_backward", False, "bidirectional"), ("forward_backward", True, "causal"))


def draw(path: Path) -> list[Path]:
    """Draws a table of `bench kernels` beside itself as PNG and SVG, microseconds a thousand (token, head) pairs, of
    kernels alone where they could be replayed; returns what it wrote. Raises UserError for another file."""
    # By panel (mode, causal) and provider.
    series: dict[tuple[str, bool], dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            replayed = [row for row in csv.DictReader(stream) if row["timing"] == "graph"]
        for row in replayed:
            own = row["provider"].startswith("clip_la")
            label = f"{row['provider']} ({row['denominator']})" if own else row["provider"]
            work = int(row["B"]) * int(row["N"]) * int(row["H"]) / 1e3
            key = (row["mode"], row["causal"] == "True")
            series[key][label].append((int(row["N"]), float(row["median_ms"]) * 1e3 / work))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"bench kernels: {path} is no table of this command: {error!r}") from error
    if not series:
        raise UserError(f"bench kernels: {path} holds no row with timing = graph; nothing to draw")

    import matplotlib

    matplotlib.use("Agg")
    # Element ids from the figure alone: the same table gives the same file.
    matplotlib.rcParams["svg.hashsalt"] = "clip_la"
    from matplotlib import pyplot

    # One color a provider, in both panels.
    labels = sorted({label for lines in series.values() for label in lines})
    colors = {label: f"C{i % COLORS}" for i, label in enumerate(labels)}
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(13, 5.5))
    for axis, (mode, causal, title) in zip(axes, PANELS, strict=True):
        for label, points in sorted(series.get((mode, causal), {}).items()):
            tokens, times = zip(*sorted(points), strict=True)
            width = 2 if label.startswith("clip_la") else 1
            axis.plot(
                tokens, times, marker="o", markersize=4, label=label, linewidth=width, color=colors[label],
                linestyle="-" if labels.index(label) < COLORS else "--",
            )  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="tokens a sequence", title=f"{title}, forward and backward")
        axis.set_ylabel("us a thousand (token, head) pairs")
        axis.grid(visible=True, which="both", alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    figure.tight_layout()
    written = []
    for suffix in (".png", ".svg"):
        target = path.with_suffix(suffix)
        temporary = target.with_name(f".{target.name}")
        figure.savefig(temporary, dpi=150, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else None)
        os.replace(temporary, target)
        written.append(target)
    pyplot.close(figure)
    return written
