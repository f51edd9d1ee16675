"""The paper's step compiled for TPUs, on a machine without one (C6).

    JAX_PLATFORMS=cpu python benchmarks/tpu.py --out=results

Needs libtpu (pip install 'vilem-jax[tpu]'), and minutes and gigabytes per topology.
Each is compiled in a process of its own. If 64 pairs a chip do not fit, the benchmark
tries to recompute blocks, then fewer pairs.

The default is the compiler's least effort: a run's own program (--effort=0) takes three
to four times as long to compile, needs about as much memory and may gather more.
"""

import json
import subprocess
import sys

import reporting

TOPOLOGIES = ("v5e:4x4", "v5e:16x16", "v5p:2x2x1", "v6e:4x4")
TRIES = ((64, False), (64, True), (32, False), (32, True), (16, True))


def main() -> None:
    parser = reporting.arguments(__doc__)
    parser.add_argument("--config", default="pretrain_cc4m")
    parser.add_argument("--topology", action="append", help="may be repeated")
    parser.add_argument("--microbatches", type=int, default=1)
    parser.add_argument("--effort", type=float, default=-1.0, help="XLA's, -1 to 1")
    parser.add_argument("--one", help="set by this program for its child processes")
    options = parser.parse_args()
    if options.one:
        topology, pairs, recompute = json.loads(options.one)
        print(json.dumps(compile_one(options, topology, pairs, recompute)))
        return
    metrics = {
        "config": options.config,
        "effort": options.effort,
        "programs": [],
    }
    for topology in options.topology or TOPOLOGIES:
        for pairs, recompute in TRIES:
            found = in_process(topology, pairs, recompute)
            metrics["programs"].append(found)
            print(f"{topology}, {pairs} pairs, recompute {recompute}: {summary(found)}")
            if found.get("fits"):
                break
    packages = ("jax", "jaxlib", "flax", "libtpu")
    text = table(metrics["programs"])
    reporting.write("tpu", options.out, metrics, text, packages)


def in_process(topology: str, pairs: int, recompute: bool) -> dict:
    """`compile_one` in a child process, whose memory is free afterwards."""
    one = json.dumps([topology, pairs, recompute])
    done = subprocess.run(
        [sys.executable, *sys.argv, f"--one={one}"], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"compiling for {topology} ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def compile_one(options, topology: str, pairs: int, recompute: bool) -> dict:
    import jax

    jax.config.update("jax_exec_time_optimization_effort", options.effort)
    jax.config.update("jax_memory_fitting_effort", options.effort)
    from vilem_jax.config.files import load_config
    from vilem_jax.planning import compiled, plan
    from vilem_jax.planning.devices import find_device

    device = find_device(topology)
    batch_size = pairs * device.num_chips * options.microbatches
    config = load_config(
        options.config,
        [
            ("train.batch_size", str(batch_size)),
            ("train.num_microbatches", str(options.microbatches)),
            ("compute.recompute", str(recompute)),
            ("editor.max_edits", "5"),
        ],
    )
    found = {
        "topology": topology,
        "pairs_a_chip": pairs,
        "recompute": recompute,
        "memory": device.memory,
    }
    try:
        step = compiled.compile_ahead(config, compiled.devices_of(device))
    except compiled.DoesNotFitError as error:
        return found | {"fits": False, "peak_bytes": error.used}
    return found | {"fits": True} | plan.describe(step, config)


def summary(found: dict) -> str:
    fits = "fits" if found["fits"] else "does not fit"
    return f"{fits}, {found['peak_bytes'] / 2**30:.2f} GiB"


def table(programs: list[dict]) -> str:
    head = ["topology", "pairs a chip", "recompute", "fits", "GiB", "of GiB"]
    head += ["GFLOP a pair", "/ the count", "collectives, MB", "compile, s"]
    rows = []
    for one in programs:
        row = [one["topology"], one["pairs_a_chip"], one["recompute"], one["fits"]]
        row += [f"{one['peak_bytes'] / 2**30:.2f}", f"{one['memory'] / 2**30:.0f}"]
        if one["fits"]:
            moved = "; ".join(
                f"{part['kind']} {part['bytes'] / 1e6:.1f}"
                + (" in a loop" if part["in_loop"] else "")
                for part in one["collectives"]
            )
            row += [f"{one['gflop_a_pair']:.1f}", f"{one['against_the_count']:.3f}"]
            row += [moved, f"{one['compile_seconds']:.0f}"]
        rows.append([*row, *[""] * (len(head) - len(row))])
    return reporting.markdown(head, rows)


if __name__ == "__main__":
    main()
