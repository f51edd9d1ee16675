"""Ten thousand steps: compilations after the second step, and memory (R18).

    JAX_PLATFORMS=cpu python benchmarks/steady.py [--steps=10000] [--out=FOLDER]

The train step of the tests' tiny model as training runs it: compiled once, its state
donated, a new host batch for each step, metrics read one step late. Compilations are
those that JAX reports for the whole process; memory is the resident size that the
kernel reports (Linux). The goal is no compilation and constant memory.
"""

import os
import sys
from pathlib import Path

import jax
import reporting

from tests import tiny

COMPILED = "/jax/core/compile/backend_compile_duration"
NUM_BATCHES = 16  # different ones, repeated


def main() -> None:
    parser = reporting.arguments(__doc__)
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--every", type=int, default=500, help="steps per row")
    options = parser.parse_args()
    if options.steps < 3:
        parser.error("--steps: compilations are counted after the second one")
    found = run(options.steps, options.every)
    first, last = found[0], found[-1]
    metrics = {
        "device": jax.devices()[0].device_kind,
        "records": found,
        "compilations_after_step_2": last["compilations_after_step_2"],
        "growth_mib": last["resident_mib"] - first["resident_mib"],
        "goal": "no compilation after step 2; constant memory",
    }
    reporting.write("steady", options.out, metrics, table(metrics))


def run(num_steps: int, every: int) -> list[dict]:
    """A record every `every` steps, and one at the end."""
    compiled = count_compilations()
    config = tiny.tiny_config()
    runner = tiny.Runner(config)
    state = runner.init_state(config)
    batches = [tiny.tiny_batch(seed) for seed in range(NUM_BATCHES)]
    before, after_two, found = None, 0, []
    for step in range(1, num_steps + 1):
        state, metrics = runner.step(state, batches[step % NUM_BATCHES])
        if before is not None:
            jax.device_get(before)  # one step late, like a run
        before = metrics
        if step == 2:
            after_two = len(compiled)
        if step > 2 and (step % every == 0 or step == num_steps):
            found.append(
                {
                    "step": step,
                    "compilations_after_step_2": len(compiled) - after_two,
                    "resident_mib": resident_mib(),
                }
            )
            print(found[-1], flush=True)
    if not after_two:
        sys.exit(f"jax {jax.__version__} reports no compilation as {COMPILED}")
    return found


def count_compilations() -> list[float]:
    """A list that gets the seconds of each later compilation."""
    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **_) -> None:
        if event == COMPILED:
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seconds


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def table(metrics: dict) -> str:
    rows = [
        [each["step"], each["compilations_after_step_2"], f"{each['resident_mib']:.1f}"]
        for each in metrics["records"]
    ]
    head = ["step", "compilations after step 2", "resident, MiB"]
    first, last = metrics["records"][0], metrics["records"][-1]
    growth = (
        f"From step {first['step']} to step {last['step']}: "
        f"{metrics['growth_mib']:+.1f} MiB. Goal: {metrics['goal']}."
    )
    return f"{reporting.markdown(head, rows)}\n\n{growth}"


if __name__ == "__main__":
    main()
