"""The tables of attentions as Markdown: those of README.md and of results/attention.md."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from attention_runs import GROUPS, SOFTMAX, TASKS, Arm, control_of

# Of the short table: so many of each group, and these.
BEST_ROWS = 3
PLAIN = (SOFTMAX, "image: linear_mean", "linear_mean", "linear")
FEATURED = ("rala", "image: rala")
# Of the summary, whose columns are these models, each with the samples that most arms have seen.
SUMMARY_MODELS = ("vit_ti16", "vit_s16")
DIFFERENCES = (
    "`image: KIND` has KIND in the image tower and softmax in the text tower; `*` marks an attention with a\n"
    "diverged run at some rate. Differences over the seeds that both have, with two 95 % intervals: over seeds (from\n"
    "the pooled spread of all seeds where fewer than three are paired), and over images, as if the two models failed\n"
    "on images of their own:"
)


def _percent(values: Mapping[int, float]) -> str:
    seeds = ", ".join(f"{100 * value:.1f}" for value in values.values())
    return f"{100 * fmean(values.values()):.1f} ({seeds})" if values else "diverged"


def arms_markdown(arms: Sequence[Arm], *, is_short: bool) -> str:
    """A table for each task and model: percent at the best rate, mean and seeds; `is_short` leaves worse arms out."""
    blocks = []
    for setting in dict.fromkeys(tuple(arm.setting.values()) for arm in arms):
        here = [arm for arm in arms if tuple(arm.setting.values()) == setting]
        task, model, tokens, samples = setting
        metrics = [each for each in TASKS[task] if any(arm.values(arm.best_lr, each.column) for arm in here)]
        headings = [f"{each.heading} %, mean (seeds)" for each in metrics]
        title = f"attention, {model}, {tokens} tokens, {samples:,} samples"
        lines = [f"| {title} | {' | '.join(headings)} | rate | forward GFLOPs a pair |"]
        lines.append("|---" * (len(metrics) + 3) + "|")
        for group in GROUPS:
            members = [arm for arm in here if arm.group == group and not (is_short and arm.best_lr is None)]
            if members:
                lines.append(f"| **{group}** |" + " |" * (len(metrics) + 2))
            for arm in [arm for i, arm in enumerate(members) if not is_short or i < BEST_ROWS or arm.label in PLAIN]:
                cells = [_percent(arm.values(arm.best_lr, each.column)) for each in metrics]
                cells[0] += " *" if arm.has_diverged and arm.best_lr is not None else ""
                rate = f"{arm.best_lr:g}" if arm.best_lr is not None else ""
                lines.append(f"| `{arm.label}` | {' | '.join(cells)} | {rate} | {arm.first_run.gflops:.2f} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def differences_markdown(rows: Iterable[Mapping[str, Any]], labels: Sequence[str], *, is_short: bool) -> str:
    """The differences of some arms in points, with both intervals; that of seeds with where its spread is from.

    `is_short` leaves out rates that are not the best of each.
    """
    lines = ["| attention | against | metric | rate | seeds | difference, points | over seeds | over images |"]
    lines.append("|---" * 8 + "|")
    headings = {metric.column: metric.heading for metrics in TASKS.values() for metric in metrics}

    def bounds(row: Mapping[str, Any], of: str) -> str:
        low, high = (row.get(f"{end}_over_{of}", "") for end in ("low", "high"))
        return f"[{100 * low:+.1f}, {100 * high:+.1f}]" if low != "" else ""

    for row in rows:
        if row["attention"] in labels and not (is_short and row["rates"] == "equal"):
            lr, against_lr = row["lr"], row["against_lr"]
            rate = f"{lr:g}" if lr == against_lr else f"{lr:g} and {against_lr:g}"
            rate += " (best)" if "best" in row["rates"] else ""
            setting = f"{headings[row['metric']]}, {row['model']}, {row['samples']:,} samples"
            lines.append(
                f"| `{row['attention']}` | `{row['against']}` | {setting} | {rate} | {row['num_seeds']}"
                f" | {100 * row['mean']:+.1f} | {bounds(row, 'seeds')} {row['spread']} | {bounds(row, 'images')} |"
            )
    return "\n".join(lines)


def summary(arms: Sequence[Arm], differences: Sequence[Mapping[str, Any]]) -> str:
    """One table for README.md: the best arms of each group, plain and featured ones, by task and model; differences."""
    counts = Counter(tuple(arm.setting.values()) for arm in arms if arm.model in SUMMARY_MODELS)
    # Of equal task and model the last one written is the one with most arms.
    columns = {setting[:2]: setting for setting, _ in reversed(counts.most_common())}
    shown = [arm for arm in arms if tuple(arm.setting.values()) in columns.values() and arm.best_lr is not None]
    wanted = {*PLAIN, *FEATURED, *(control_of(label) for label in FEATURED if ":" not in label)}
    for setting, group in itertools.product(columns.values(), GROUPS):
        members = [arm.label for arm in shown if tuple(arm.setting.values()) == setting and arm.group == group]
        wanted |= set(members[:BEST_ROWS]) if counts[setting] > len(GROUPS) * BEST_ROWS else set()
    heads = [
        f"{TASKS[task][0].heading} % (seeds), {model}, {samples:,} samples"
        for task, model, _, samples in columns.values()
    ]
    lines = ["| attention | " + " | ".join(heads) + " |", "|---" * (len(columns) + 1) + "|"]
    for group in GROUPS:
        lines.append(f"| **{group}** |" + " |" * len(columns))
        for label in dict.fromkeys(arm.label for arm in shown if arm.group == group and arm.label in wanted):
            cells = []
            for task, model, tokens, samples in columns.values():
                setting = {"task": task, "model": model, "tokens": tokens, "samples": samples}
                arm = next((each for each in shown if each.label == label and each.setting == setting), None)
                values = arm.values(arm.best_lr, TASKS[task][0].column).values() if arm else ()
                mark = " *" if arm and arm.has_diverged else ""
                cells.append(f"{100 * fmean(values):.1f} ({len(values)}){mark}" if values else "")
            lines.append(f"| `{label}` | {' | '.join(cells)} |")
    first = {metrics[0].column for metrics in TASKS.values()}
    rows = [
        row
        for row in differences
        if row["metric"] in first
        and tuple(row[name] for name in ("task", "model", "tokens", "samples")) in columns.values()
    ]
    # Of several rates those of most seeds, of these the best of each.
    rows.sort(key=lambda row: (row["num_seeds"], "best" in row["rates"]))
    first_of = {tuple(row[name] for name in ("task", "model", "attention", "against")): row for row in rows}
    rows = [row for row in differences if any(row is each for each in first_of.values())]
    return "\n\n".join(["\n".join(lines), DIFFERENCES, differences_markdown(rows, FEATURED, is_short=False)])


def shown(
    arms: Sequence[Arm],
    differences: Sequence[Mapping[str, Any]],
    labels: Sequence[str] = FEATURED,
    *,
    is_short: bool,
) -> str:
    """Both tables as Markdown, of the differences those of `labels`."""
    parts = [arms_markdown(arms, is_short=is_short)]
    if labels:
        parts.append(DIFFERENCES)
        parts.append(differences_markdown(differences, labels, is_short=is_short))
    return "\n\n".join(parts)
