"""The page of `vilem evaluate suite`: the paper's rows beside ours, in Markdown."""

from collections.abc import Sequence
from pathlib import Path

from vilem_jax.evaluation.benchmark import Cell
from vilem_jax.evaluation.retrieval import SUMMARY_HEAD, summary_cells
from vilem_jax.evaluation.suite import Suite
from vilem_jax.evaluation.winoground import KINDS
from vilem_jax.report import paper_tables as paper
from vilem_jax.report.tables import cell_text, measured_lines

EMPTY = ""  # a cell


def suite_page(suite: Suite, *, model: str, weights: str) -> str:
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
        *_paper_tables(suite.metrics, name),
        *_summaries(suite),
        *_conditions(suite),
        *_not_measured(suite),
    ]
    return "\n\n".join(parts) + "\n"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table of Markdown: the first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    lines += [[cell_text(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _paper_tables(metrics: dict[str, dict], name: str) -> list[str]:
    """Tables 1 to 4 with the measured rows, which have dashes if there is no data."""
    flickr, coco = (summary_cells(metrics.get(data)) for data in ("flickr30k", "coco"))
    columns = [f"{data} {head}" for data in ("F30K", "COCO") for head in SUMMARY_HEAD]
    rows_1 = [[model, pairs, *f30k, *c] for model, pairs, f30k, c in paper.TABLE_1]
    rows_2 = [[model, *row] for model, row in paper.TABLE_2]
    rows_3 = [[model, pairs, *row] for model, pairs, row in paper.TABLE_3]
    rows_4 = [[model, *row] for model, row in paper.TABLE_4]
    video = metrics.get("msrvtt", {}).get("t2v", {})
    recalls = [video.get(key) for key in ("r1", "r5", "r10", "median_rank")]
    return [
        "## Table 1: retrieval, fine-tuned",
        "Flickr30K (1K test set) and COCO (5K test set). The measured row is like the "
        "others only if the model was fine-tuned on these data.",
        markdown_table(
            ["Model", "pairs", *columns], [*rows_1, [name, EMPTY, *flickr, *coco]]
        ),
        paper.NOTE_1,
        "## Table 2: retrieval on COCO (5K), without fine-tuning",
        markdown_table(["Model", *SUMMARY_HEAD], [*rows_2, [name, *coco]]),
        "## Table 3: MSR-VTT (1K), text to video, zero-shot",
        markdown_table(
            ["Model", "pairs", "R@1", "R@5", "R@10", "median rank"],
            [*rows_3, [name, EMPTY, *recalls]],
        ),
        "## Table 4: Winoground",
        markdown_table(
            ["Model", *paper.TAGS, "1 predicate", "2 predicates", "all"],
            [*rows_4, *_winoground_rows(metrics.get("winoground"), name)],
        ),
        paper.NOTE_4,
    ]


def _winoground_rows(metrics: dict | None, name: str) -> list[list[Cell]]:
    if not metrics:
        return [[name, *[None] * 6]]
    parts = [metrics["by_tag"].get(tag, {}) for tag in paper.TAGS]
    parts += [metrics["by_predicates"].get(count, {}) for count in ("1", "2")]
    return [
        [
            name if kind == "text" else f"{name}, {kind} score",
            *(part.get(kind) for part in [*parts, metrics]),
        ]
        for kind in KINDS
    ]


def _summaries(suite: Suite) -> list[str]:
    """The benchmarks' own rows; tables of one title are joined."""
    tables: dict[str, tuple[Sequence[str], list]] = {}
    for name, metrics in suite.metrics.items():
        found = suite.found[name]
        if found.benchmark.summarize:
            table = found.benchmark.summarize(found.data_set.title, metrics)
            tables.setdefault(table.title, (table.head, []))[1].extend(table.rows)
    return [
        f"## {title}\n\n{markdown_table(head, rows)}"
        for title, (head, rows) in tables.items()
    ]


def _conditions(suite: Suite) -> list[str]:
    lines = []
    for name, metrics in suite.metrics.items():
        protocol = metrics["protocol"]
        notes = [f"captions of at most {protocol['text_length']} tokens"]
        if missing := protocol.get("missing_images"):
            notes.append(f"{missing} images were missing and left out")
        notes += protocol.get("notes", ())
        title = suite.found[name].data_set.title
        measured = measured_lines(metrics).replace("\n", "; ")
        lines.append(f"- {title} (`{name}.json`): {'; '.join(notes)}; {measured}")
    return ["## How it was measured", "\n".join(lines)] if lines else []


def _not_measured(suite: Suite) -> list[str]:
    lines = [
        f"- {suite.found[name].data_set.title}: could not be measured: {why}"
        for name, why in suite.refused.items()
    ]
    lines += [f"- {one.title}: not found ({one.files[0]})" for one in suite.absent]
    return ["## Not measured", "\n".join(lines)] if lines else []
