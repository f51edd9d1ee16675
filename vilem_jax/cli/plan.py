"""`vilem plan`: what a run costs on a device, before it is rented."""

import argparse

from vilem_jax.cli.options import add_config
from vilem_jax.config.files import load_config


def add_verbs(verbs) -> None:
    plan = verbs.add_parser(
        "plan",
        help="parameters, FLOPs, memory and time of a run, before renting anything",
        description="Counts what a step computes, keeps and sends, and predicts its "
        "speed. Reads no data and no weights, and needs neither GPU nor TPU.",
        allow_abbrev=False,
    )
    add_config(plan)
    plan.add_argument(
        "--device",
        required=True,
        help="h200, h100, a100 (a100-32: so many), v4-N, v5e-N, v5p-N, v6e-N as Google "
        "names slices, a topology such as v5e:4x4, or cpu",
    )
    plan.add_argument(
        "--pairs",
        type=_pairs,
        help="image-caption pairs of the training data, for the hours",
    )
    plan.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile the step and say what the compiler says, which takes minutes; "
        "by default for TPUs, where libtpu is installed",
    )
    plan.add_argument("--out", help="JSON file with all metrics")
    plan.set_defaults(verb=_plan)


def _plan(options: argparse.Namespace) -> None:
    from vilem_jax.files import check_writable, write_json
    from vilem_jax.planning import devices

    device = devices.find_device(options.device)
    config = load_config(options.config, options.overrides)
    if options.out:
        check_writable(options.out)
    from vilem_jax.planning.compiled import has_libtpu
    from vilem_jax.planning.plan import KNOWN_PAIRS, make_plan

    with_compiler = options.compile
    if with_compiler is None:
        with_compiler = device.is_tpu and has_libtpu()
    plan = make_plan(
        config,
        device,
        pairs=options.pairs or KNOWN_PAIRS.get(options.config),
        with_compiler=with_compiler,
    )
    if device.is_tpu and not with_compiler and options.compile is None:
        plan["notes"].append(
            "not compiled: libtpu is not installed, which compiles for TPUs on any "
            "Linux machine (pip install 'vilem-jax[tpu]')"
        )
    plan = {"config": options.config, "overrides": dict(options.overrides), **plan}
    print(plan_tables(plan))
    if options.out:
        write_json(options.out, plan)
        print(f"\n{options.out}")


def plan_tables(plan: dict) -> str:
    """A plan for people: work, memory, what moves, prediction, the compiler's word."""
    parts = [_head(plan), _work_table(plan), _memory_table(plan)]
    if plan["collectives_a_step"]:
        parts.append(_collectives_table(plan["collectives_a_step"]))
    parts.append(_prediction(plan))
    if plan["compiled"]:
        parts.append(_compiled(plan["compiled"]))
    parts += ["\n".join(f"note: {note}" for note in plan["notes"])]
    return "\n\n".join(part for part in parts if part)


def _head(plan: dict) -> str:
    device, batch = plan["device"], plan["batch_size"]
    where = device["name"]
    if device["topology"] and device["topology"] != where:
        where += f" ({device['topology']})"
    chips = device["num_chips"]
    count = ", ".join(
        f"{number / 1e6:.1f} M {name}" for name, number in plan["parameters"].items()
    )
    return (
        f"{plan['config']} on {where}: {chips} chip{'s' if chips > 1 else ''}\n"
        f"parameters: {count}\n"
        f"batch {batch:,}: {batch // chips:,} pairs a chip in "
        f"{plan['num_microbatches']} microbatch"
        f"{'es' if plan['num_microbatches'] > 1 else ''}"
    )


def _work_table(plan: dict) -> str:
    from vilem_jax.report.tables import format_table

    work = plan["gflop_a_pair"]
    rows = [
        [name, f"{value:.2f}", f"{100 * value / work['sum']:.1f} %"]
        for name, value in work["parts"].items()
    ]
    rows.append(["sum", f"{work['sum']:.1f}", ""])
    rows.append(["with nothing saved", f"{work['without_savings']:.1f}", ""])
    return format_table(["work, a pair", "GFLOP", "share"], rows)


def _memory_table(plan: dict) -> str:
    from vilem_jax.report.tables import format_table

    held = plan["bytes_a_chip"]
    rows = [[name, _gb(size)] for name, size in held["state"].items() if size]
    rows.append(["all of these last", _gb(held["state_sum"])])
    rows.append(["images of the batch", _gb(held["batch"])])
    a_pair = held["activations_a_pair_sum"] / 1e6
    name = f"activations of a microbatch, {a_pair:.0f} MB a pair"
    rows.append([name, _gb(held["activations"])])
    total = held["state_sum"] + held["batch"] + held["activations"]
    rows.append(["sum", _gb(total)])
    table = format_table(["memory, a chip", "GB"], rows)
    if held["memory"] is None:
        return table
    return f"{table}\n{_fit(plan, held, total)}"


def _fit(plan: dict, held: dict, total: float) -> str:
    memory, chips = held["memory"], plan["device"]["num_chips"]
    free = 100 * held["margin"]
    is_within = total <= (1 - held["margin"]) * memory
    sentence = (
        f"{'fits' if is_within else 'DOES NOT FIT'} {_gb(memory)} GB with {free:.0f} % "
        f"left free; largest microbatch: {held['largest_microbatch']:,} pairs a chip"
    )
    needed = held["microbatches_needed"]
    if needed is None:
        return f"{sentence}; no number of microbatches makes this batch fit"
    a_chip = plan["batch_size"] // chips // needed
    return (
        f"{sentence}\nfewest microbatches for this batch: {needed} "
        f"(config.train.num_microbatches), of {a_chip:,} pairs a chip"
    )


def _collectives_table(moved: list[dict]) -> str:
    from vilem_jax.report.tables import format_table

    rows = [[one["kind"], one["what"], f"{one['bytes'] / 1e6:.1f}"] for one in moved]
    head = ["between chips, a step", "what", "MB"]
    return format_table(head, rows, left=(0, 1))


def _prediction(plan: dict) -> str:
    device, found = plan["device"], plan["prediction"]
    if not found:
        return f"{device['name']}: {device['source']}"
    sentence = (
        f"prediction, not a measurement: {found['pairs_per_second']:,.0f} pairs/s, "
        f"{found['seconds_a_step']:.2f} s a step, at {100 * found['goal']:.0f} % of "
        f"{device['num_chips']} x {device['peak'] / 1e12:.0f} TFLOP/s\n"
        f"({device['source']})"
    )
    if "hours" in found:
        return (
            f"{sentence}\n{found['epochs']} epochs of {found['pairs']:,.0f} pairs: "
            f"{found['hours']:.1f} hours"
        )
    return f"{sentence}\nfor the hours of 20 epochs say --pairs=N"


def _compiled(found: dict) -> str:
    from vilem_jax.report.tables import format_table

    if not found["fits"]:
        return f"compiled for {found['platform']}: {found['error']}"
    rows = [
        ["arguments, GB a chip", _gb(found["argument_bytes"])],
        ["temporaries, GB a chip", _gb(found["temporary_bytes"])],
        ["together, GB a chip", _gb(found["peak_bytes"])],
        ["GFLOP a pair in matrix products", f"{found['gflop_a_pair']:.1f}"],
        ["  of the count above", f"{found['against_the_count']:.3f}"],
        ["seconds to trace", f"{found['lower_seconds']:.0f}"],
        ["seconds to compile", f"{found['compile_seconds']:.0f}"],
    ]
    table = format_table([f"compiled for {found['platform']}", ""], rows)
    moved = [
        [
            one["kind"] + (", in a loop" if one["in_loop"] else ""),
            str(one["times"]),
            f"{one['bytes'] / 1e6:.1f}",
            one["largest"],
        ]
        for one in found["collectives"]
    ]
    if not moved:
        return table
    head = ["collectives, a step", "times", "MB", "largest"]
    return f"{table}\n\n{format_table(head, moved, left=(0, 3))}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f}"


def _pairs(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of 1 or more")
    return value
