"""The page of `vilem evaluate suite`: the paper's rows beside ours, in Markdown."""

from collections.abc import Sequence
from pathlib import Path

from vilem_jax.evaluation.suite import SuiteResult
from vilem_jax.report import paper_tables as paper
from vilem_jax.report.tables import measured_lines

SPACE = ""  # an empty cell
_TAGS = ("Object", "Relation", "Both")


def suite_page(done: SuiteResult, *, model: str, weights: str) -> str:
    """Markdown: how it was measured, Tables 1 to 4, other benchmarks, what is absent.

    Args:
      model: what the measured row is called.
      weights: "online", "momentum" or "mixed".
    """
    name = f"**{Path(model).name or model}**"
    parts = [
        f"# Evaluation of {model}",
        f"Weights: {weights}. Recalls and accuracies in per cent; ties count against "
        "the model. Rows in bold are measured here, the others are the paper's (Chen "
        "et al., ViLEM, CVPR 2023).",
        _table_1(done, name),
        _table_2(done, name),
        _table_3(done, name),
        _table_4(done, name),
        _other_retrieval(done),
        _pairs(done),
        _conditions(done),
        _left(done),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown: the first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _numbers(row: Sequence[float | None]) -> list[str]:
    return ["-" if value is None else f"{value:.1f}" for value in row]


def _recalls(metrics: dict | None) -> list[str]:
    """The seven numbers of Tables 1 and 2, or dashes."""
    if metrics is None:
        return ["-"] * 7
    both = [metrics[way][top] for way in ("i2t", "t2i") for top in ("r1", "r5", "r10")]
    return _numbers([*both, metrics["rsum"]])


def _table_1(done: SuiteResult, name: str) -> str:
    head = ["Model", "pairs"]
    for data in ("F30K", "COCO"):
        ways = ("i→t", "i→t", "i→t", "t→i", "t→i", "t→i", "")
        for way, recall in zip(ways, paper.RECALLS, strict=True):
            head.append(" ".join(part for part in (data, way, recall) if part))
    rows = [
        [model, pairs, *_numbers(flickr), *_numbers(coco)]
        for model, pairs, flickr, coco in paper.TABLE_1
    ]
    measured = [done.metrics.get(data) for data in ("flickr30k", "coco")]
    ours = [cell for metrics in measured for cell in _recalls(metrics)]
    return "\n\n".join(
        [
            "## Table 1: retrieval, fine-tuned",
            "Flickr30K (1K test set) and COCO (5K test set). The measured row is like "
            "the others only if the model was fine-tuned on these data.",
            markdown_table(head, [*rows, [name, SPACE, *ours]]),
            paper.NOTE_1,
        ]
    )


def _table_2(done: SuiteResult, name: str) -> str:
    ways = ("i→t", "i→t", "i→t", "t→i", "t→i", "t→i", "")
    head = [f"{w} {r}".strip() for w, r in zip(ways, paper.RECALLS, strict=True)]
    rows = [[model, *_numbers(row)] for model, row in paper.TABLE_2]
    ours = [name, *_recalls(done.metrics.get("coco"))]
    return "\n\n".join(
        [
            "## Table 2: retrieval on COCO (5K), without fine-tuning",
            markdown_table(["Model", *head], [*rows, ours]),
        ]
    )


def _table_3(done: SuiteResult, name: str) -> str:
    metrics = done.metrics.get("msrvtt")
    ours = ["-"] * 4
    if metrics is not None:
        found = metrics["t2v"]
        ours = _numbers([found[key] for key in ("r1", "r5", "r10", "median_rank")])
    rows = [[model, pairs, *_numbers(row)] for model, pairs, row in paper.TABLE_3]
    head = ["Model", "pairs", "R@1", "R@5", "R@10", "median rank"]
    return "\n\n".join(
        [
            "## Table 3: MSR-VTT (1K), text to video, zero-shot",
            markdown_table(head, [*rows, [name, SPACE, *ours]]),
        ]
    )


def _table_4(done: SuiteResult, name: str) -> str:
    metrics = done.metrics.get("winoground")
    head = ["Model", *_TAGS, "1 predicate", "2 predicates", "all"]
    rows = [[model, *_numbers(row)] for model, row in paper.TABLE_4]
    kinds = ("text", "image", "group")
    for kind in kinds if metrics else ():
        tags = [metrics["by_tag"].get(tag, {}).get(kind) for tag in _TAGS]
        counts = [metrics["by_predicates"].get(n, {}).get(kind) for n in ("1", "2")]
        label = name if kind == "text" else f"{name}, {kind} score"
        rows.append([label, *_numbers([*tags, *counts, metrics[kind]])])
    if not metrics:
        rows.append([name, *["-"] * 6])
    return "\n\n".join(
        ["## Table 4: Winoground", markdown_table(head, rows), paper.NOTE_4]
    )


def _other_retrieval(done: SuiteResult) -> str:
    rows = []
    for name, metrics in done.metrics.items():
        if "i2t" not in metrics:
            continue
        title = done.found.present[name][0].title
        counts = [str(metrics["images"]), str(metrics["captions"])]
        rows.append([title, *counts, *_recalls(metrics)])
        if "folds" in metrics:
            part = metrics["folds"]
            counts = [f"{part['folds']} x {part['images']}", str(part["captions"])]
            rows.append([f"{title}, mean of folds", *counts, *_recalls(part)])
    if not rows:
        return ""
    ways = ("i→t", "i→t", "i→t", "t→i", "t→i", "t→i", "")
    head = [f"{w} {r}".strip() for w, r in zip(ways, paper.RECALLS, strict=True)]
    return "\n\n".join(
        [
            "## Retrieval, all that was measured",
            markdown_table(["Data", "images", "captions", *head], rows),
        ]
    )


def _pairs(done: SuiteResult) -> str:
    rows = []
    for name, metrics in done.metrics.items():
        if "by_type" not in metrics:
            continue
        title = done.found.present[name][0].title
        for kind, accuracy in metrics["by_type"].items():
            mean = metrics.get("mean_over_groups", {}).get(kind)
            count = str(metrics["pairs_by_type"][kind])
            rows.append([f"{title}: {kind}", count, *_numbers([accuracy, mean])])
        rows.append([f"{title}: all", str(metrics["pairs"])])
        rows[-1] += _numbers([metrics["accuracy"], None])
    if not rows:
        return ""
    head = ["Pairs", "number", "accuracy", "mean over groups"]
    return f"## True against wrong captions\n\n{markdown_table(head, rows)}"


def _conditions(done: SuiteResult) -> str:
    lines = ["## How it was measured"]
    for name, metrics in done.metrics.items():
        protocol = metrics["protocol"]
        said = [f"captions of at most {protocol['text_length']} tokens"]
        if missing := protocol.get("missing_images"):
            said.append(f"{missing} images were missing and left out")
        said += protocol.get("notes", ())
        title = done.found.present[name][0].title
        told = measured_lines(metrics).replace("\n", "; ")
        lines.append(f"- {title} (`{name}.json`): {'; '.join(said)}; {told}")
    return "\n".join([lines[0], "", *lines[1:]]) if done.metrics else ""


def _left(done: SuiteResult) -> str:
    lines = []
    for name, why in done.refused.items():
        title = done.found.present[name][0].title
        lines.append(f"- {title}: could not be measured: {why}")
    lines += [
        f"- {one.title}: not found ({one.looks_for})" for one in done.found.absent
    ]
    return "\n".join(["## Not measured", "", *lines]) if lines else ""
