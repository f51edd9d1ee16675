"""Figures as tables for the terminal."""

from collections.abc import Sequence

from vilem_jax.api import Word


def retrieval_table(metrics: dict, chance: dict | None = None) -> str:
    """Recalls both ways, and those of random order where `chance` is given."""
    rows = []
    ways = (("t2i", "text to image"), ("i2t", "image to text"))
    for way, name in ways:
        found = metrics[way]
        recalls = [f"{found[top]:.1f}" for top in ("r1", "r5", "r10")]
        rows.append([name, *recalls, f"{found['median_rank']:g}"])
    for way, name in ways if chance else ():
        recalls = [f"{chance[way][top]:.1f}" for top in ("r1", "r5", "r10")]
        rows.append([f"  by chance, {name}", *recalls, ""])
    head = ["retrieval, %", "R@1", "R@5", "R@10", "median rank"]
    counts = f"{metrics['images']} images, {metrics['captions']} captions"
    table = f"{format_table(head, rows)}\nrsum {metrics['rsum']:.1f}  ({counts})"
    if folds := metrics.get("folds"):
        counts = f"mean of {folds['folds']} folds of {folds['images']} images"
        part = retrieval_table({name: folds[name] for name in folds if name != "folds"})
        # Its own last line counts the captions of all folds together.
        part = part.rpartition("\n")[0]
        table += f"\n\n{part}\nrsum {folds['rsum']:.1f}  ({counts})"
    return table


def winoground_table(metrics: dict) -> str:
    """Text, image and group scores: of all, by tag, by number of predicates."""
    parts = [("all", metrics)]
    parts += metrics["by_tag"].items()
    for count, part in metrics["by_predicates"].items():
        parts.append((f"{count} predicate{'s' if count != '1' else ''}", part))
    rows = []
    for name, part in parts:
        cells = [f"{part[kind]:.1f}" for kind in ("text", "image", "group")]
        rows.append([name, *cells, str(part["examples"])])
    return format_table(["winoground, %", "text", "image", "group", "examples"], rows)


def video_table(metrics: dict) -> str:
    """Recalls of clips by captions, and back."""
    rows = []
    for way, name in (("t2v", "text to video"), ("v2t", "video to text")):
        found = metrics[way]
        recalls = [f"{found[top]:.1f}" for top in ("r1", "r5", "r10")]
        rows.append([name, *recalls, f"{found['median_rank']:g}"])
    head = ["retrieval, %", "R@1", "R@5", "R@10", "median rank"]
    protocol = metrics["protocol"]
    counts = f"{metrics['clips']} clips, {metrics['captions']} captions"
    if left_out := protocol["clips_left_out"]:
        counts += f"; {left_out} LEFT OUT"
    counts += f"; {protocol['name']}, {protocol['frames']} frames a clip"
    return f"{format_table(head, rows)}\nrsum {metrics['rsum']:.1f}  ({counts})"


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


def pairs_table(metrics: dict) -> str:
    """Accuracy by type of pair."""
    rows = [
        [kind, f"{accuracy:.1f}", str(metrics["pairs_by_type"][kind])]
        for kind, accuracy in metrics["by_type"].items()
    ]
    for kind, mean in metrics.get("mean_over_groups", {}).items():
        groups = len(metrics["by_group"][kind])
        rows.append([f"{kind}, mean of groups", f"{mean:.1f}", f"{groups} groups"])
    rows.append(["all", f"{metrics['accuracy']:.1f}", str(metrics["pairs"])])
    return format_table(["caption pairs", "accuracy, %", "pairs"], rows)


def proofread_table(metrics: dict) -> str:
    """The trained branches, with the right images and with shuffled ones."""
    rows = []
    settings = [("", metrics)]
    if "shuffled" in metrics:
        settings.append((", another image", metrics["shuffled"]))
    names = {"detect": ("precision", "recall", "f1"), "correct": ("top1", "top3")}
    for branch in (name for name in ("local", "global") if name in metrics):
        for suffix, part in settings:
            cells = [
                f"{part[branch][task][name]:.3f}" if task in part[branch] else "-"
                for task in names
                for name in names[task]
            ]
            rows.append([branch + suffix, *cells])
    head = ["proofreading", "precision", "recall", "F1", "top-1", "top-3"]
    counts = f"{metrics['captions']} captions, {metrics['edits']} wrong words"
    return f"{format_table(head, rows)}\n({counts})"


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
