"""Metrics as tables for the terminal."""

from collections.abc import Sequence

from vilem_jax.api import Word
from vilem_jax.evaluation.benchmark import Cell, Table


def render(tables: Sequence[Table]) -> str:
    """The tables of a benchmark as text."""
    parts = []
    for table in tables:
        rows = [[cell_text(cell) for cell in row] for row in table.rows]
        parts.append(f"{format_table(table.head, rows)}\n{table.foot}".rstrip())
    return "\n\n".join(parts)


def cell_text(cell: Cell) -> str:
    """A number with one digit, a dash for None, or the text itself."""
    if cell is None:
        return "-"
    return cell if isinstance(cell, str) else f"{cell:.1f}"


def measured_lines(metrics: dict) -> str:
    """What was measured, on what, and the seconds of each stage."""
    protocol, measured = metrics["protocol"], metrics["measured"]
    data = str(protocol["data"])
    if split := protocol.get("split"):
        data += f" ({split})"
    on = [data]
    if "image_size" in measured:
        on.append(f"{measured['image_size']} x {measured['image_size']} pixels")
    on += [measured["dtype"], measured["device"]]
    if "batch_size" in measured:
        on.append(f"batch {measured['batch_size']}")
    seconds = ", ".join(
        f"{stage.replace('_', ' ')} {value:.2f}"
        for stage, value in measured["seconds"].items()
    )
    return f"{', '.join(on)}\nseconds: {seconds}"


def words_table(words: Sequence[Word]) -> str:
    """A proofread caption, one word a line; wrong ones are marked."""
    rows = [
        [
            "wrong" if word.is_wrong else "",
            word.word,
            f"{word.p_wrong:.2f}",
            ", ".join(f"{other} {p:.2f}" for other, p in word.corrections),
        ]
        for word in words
    ]
    return format_table(["", "word", "p(wrong)", "rather"], rows, left=(0, 1, 3))


def format_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)
) -> str:
    """Columns side by side; numbers to the right, columns in `left` to the left."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells):
        aligned = (
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(aligned).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(head), rule, *map(line, rows)])
