"""`vilem plan`: FLOPs, memory and time of a run on a device, before it is rented."""

import argparse

from vilem_jax.cli.options import add_config, read_config_options
from vilem_jax.progress import doing, in_words
from vilem_jax.typing import JsonObject


def add_verbs(verbs) -> None:
    plan = verbs.add_parser(
        "plan",
        run=_plan,
        help="parameters, FLOPs, memory and time of a run, before renting anything",
        description="Counts what a step computes, keeps and sends, and predicts its "
        "speed. Reads no data and no weights, and needs neither GPU nor TPU.",
    )
    add_config(plan)
    add = plan.add_argument
    add(
        "--device",
        help="h200, h100, a100 (a100-32: 32 of them), rtx3090, rtx4090, rtx5090, l4, "
        "l40s, t4, v4-N, v5e-N, v5p-N, v6e-N as Google names slices, a topology such "
        "as v5e:4x4, or cpu; by default the devices of this machine",
    )
    add("--pairs", type=_pairs, help="image-caption pairs to train on, for the time")
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile the step, which takes minutes, and report its memory, FLOPs and "
        "collectives; by default for TPUs if libtpu is installed",
    )
    add("--out", help="JSON file with all metrics")


def _plan(options: argparse.Namespace) -> None:
    # Here, because they import JAX, which no other verb should wait for.
    with doing("loading JAX"):
        from vilem_jax.files import check_writable, write_json
        from vilem_jax.planning.compiled import has_libtpu
        from vilem_jax.planning.devices import device_here, find_device
        from vilem_jax.planning.plan import KNOWN_PAIRS, make_plan

    device = device_here() if options.device is None else find_device(options.device)
    config = read_config_options(options)
    if options.out:
        check_writable(options.out)
    can_compile = device.is_tpu and has_libtpu()
    with_compiler = can_compile if options.compile is None else options.compile
    pairs = options.pairs or KNOWN_PAIRS.get(options.config)
    plan = {"config": options.config, "overrides": dict(options.overrides)}
    plan |= make_plan(config, device, pairs=pairs, with_compiler=with_compiler)
    if device.is_tpu and options.compile is None and not can_compile:
        plan["notes"].append(
            "not compiled: libtpu is not installed, which compiles for TPUs on any "
            "Linux machine (pip install 'vilem-jax[tpu]')"
        )
    if options.out:
        write_json(options.out, plan)
    print(plan_tables(plan))
    if options.out:
        print(f"\n{options.out}")


def plan_tables(plan: JsonObject) -> str:
    """What `make_plan` found, for the terminal: a part for each of its keys."""
    from vilem_jax.report.tables import format_table

    work, held, compiled = plan["gflop_a_pair"], plan["bytes_a_chip"], plan["compiled"]
    fit = f"\n{_fit(plan)}" if held["memory"] is not None else ""
    parts = [
        _head(plan),
        format_table(["work, a pair", "GFLOP", "share"], _work_rows(work)),
        format_table(["memory, a chip", "GB"], _memory_rows(held)) + fit,
    ]
    if moved := plan["collectives_a_step"]:
        rows = [[m["kind"], m["what"], f"{m['bytes'] / 1e6:.1f}"] for m in moved]
        head = ["between chips, a step", "what", "MB"]
        parts.append(format_table(head, rows, left=(0, 1)))
    parts.append(_prediction(plan))
    if compiled and "error" in compiled:
        parts.append(f"compiled for {compiled['platform']}: {compiled['error']}")
    elif compiled:
        head = [f"compiled for {compiled['platform']}", ""]
        parts.append(format_table(head, _compiled_rows(compiled, held["memory"])))
        if moved := compiled["collectives"]:
            head = ["collectives, a step", "times", "MB", "largest"]
            rows = [_collective_row(row) for row in moved]
            parts.append(format_table(head, rows, left=(0, 3)))
    if plan["notes"]:
        parts.append("\n".join(f"note: {note}" for note in plan["notes"]))
    return "\n\n".join(parts)


def _head(plan: JsonObject) -> str:
    device, batch, number = plan["device"], plan["batch_size"], plan["num_microbatches"]
    name, topology, chips = device["name"], device["topology"], device["num_chips"]
    if topology not in ("", name):
        name += f" ({topology})"
    counts = [f"{n / 1e6:.1f} M {kind}" for kind, n in plan["parameters"].items()]
    return (
        f"{plan['config']} on {name}: {chips} chip{'s' if chips > 1 else ''}\n"
        f"parameters: {', '.join(counts)}\n"
        f"batch {batch:,}: {batch // chips:,} pairs a chip in "
        f"{number} microbatch{'es' if number > 1 else ''}"
    )


def _work_rows(work: JsonObject) -> list[list[str]]:
    total, plain = work["sum"], work["without_savings"]
    parts = work["parts"].items()
    rows = [[name, f"{g:.2f}", f"{100 * g / total:.1f} %"] for name, g in parts]
    sums = {"sum": total, "with nothing saved": plain}
    return rows + [[name, f"{g:.1f}", ""] for name, g in sums.items()]


def _memory_rows(held: JsonObject) -> list[list[str]]:
    a_pair = held["activations_a_pair_sum"] / 1e6
    sizes = {name: size for name, size in held["state"].items() if size} | {
        "all of these last": held["state_sum"],
        "images of the batch": held["batch"],
        f"activations of a microbatch, {a_pair:.0f} MB a pair": held["activations"],
        "sum": held["state_sum"] + held["batch"] + held["activations"],
    }
    return [[name, _gb(size)] for name, size in sizes.items()]


def _fit(plan: JsonObject) -> str:
    """Whether the sum fits the chip, and the microbatches with which it would."""
    held = plan["bytes_a_chip"]
    memory, margin = held["memory"], held["margin"]
    total = held["state_sum"] + held["batch"] + held["activations"]
    sentence = (
        f"{'fits' if total <= (1 - margin) * memory else 'DOES NOT FIT'} {_gb(memory)} "
        f"GB with {100 * margin:.0f} % left free; "
        f"largest microbatch: {held['largest_microbatch']:,} pairs a chip"
    )
    if not (needed := held["microbatches_needed"]):
        return f"{sentence}; no number of microbatches makes this batch fit"
    a_chip = plan["batch_size"] // plan["device"]["num_chips"] // needed
    return (
        f"{sentence}\nfewest microbatches for this batch: {needed} "
        f"(config.train.num_microbatches), of {a_chip:,} pairs a chip"
    )


def _prediction(plan: JsonObject) -> str:
    device, found = plan["device"], plan["prediction"]
    if not found:
        return f"{device['name']}: {device['source']}"
    speed = found["pairs_per_second"]
    digits = ",.0f" if speed >= 10 else ".2g"
    sentence = (
        f"prediction, not a measurement: {speed:{digits}} pairs/s, "
        f"{found['seconds_a_step']:.2f} s a step, at {100 * found['goal']:.0f} % of "
        f"{device['num_chips']} x {device['peak'] / 1e12:.3g} TFLOP/s\n"
        f"({device['source']})"
    )
    if "minutes" in found:
        lasts = in_words(60 * found["minutes"])
        sentence += f"\nthe run, {found['steps']:,} steps: {lasts}"
    if "hours" in found:
        sentence += (
            f"\n{found['epochs']} epochs of {found['pairs']:,.0f} pairs: "
            f"{found['hours']:.1f} hours"
        )
    if "minutes" not in found and "hours" not in found:
        sentence += "\nfor the time of the run say --pairs=N"
    return sentence


def _compiled_rows(found: JsonObject, memory: float | None) -> list[list[str]]:
    calls = found["custom_calls"].items()
    room = "" if found["fits"] else f", MORE than {_gb(memory or 0.0)}"
    return [
        ["arguments, GB a chip", _gb(found["argument_bytes"])],
        ["temporaries, GB a chip", _gb(found["temporary_bytes"])],
        [f"together, GB a chip{room}", _gb(found["peak_bytes"])],
        ["GFLOP a pair in matrix products", f"{found['gflop_a_pair']:.1f}"],
        ["  of the count above", f"{found['against_the_count']:.3f}"],
        *[[f"calls of {name}", str(times)] for name, times in calls],
        ["seconds to trace", f"{found['lower_seconds']:.0f}"],
        ["seconds to compile", f"{found['compile_seconds']:.0f}"],
    ]


def _collective_row(row: JsonObject) -> list[str]:
    kind = f"{row['kind']}{', in a loop' if row['in_loop'] else ''}"
    kind += ", asynchronous" if row["is_async"] else ""
    return [kind, str(row["times"]), f"{row['bytes'] / 1e6:.1f}", row["largest"]]


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f}"


def _pairs(text: str) -> float:
    """An argument of 1 or more; argparse reports the error."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < float("inf"):  # NaN too
        raise argparse.ArgumentTypeError(f"{text} is not a number of 1 or more")
    return value
