"""Seconds to compile the paper's step, cold and from the persistent cache (C7).

    JAX_PLATFORMS=cpu python benchmarks/compile_time.py --out=results

Each runs in a process of its own, and both share one cache folder. On a GPU or TPU,
leave JAX_PLATFORMS out. The seconds are reported, never asserted.
"""

import json
import subprocess
import sys
import tempfile
import time

import reporting


def main() -> None:
    parser = reporting.arguments(__doc__)
    parser.add_argument("--config", default="pretrain_cc4m")
    parser.add_argument("--pairs", type=int, default=2, help="per step")
    parser.add_argument("--cache", help="set by this program for its child processes")
    options = parser.parse_args()
    if options.cache:
        print(json.dumps(seconds(options)))
        return
    runs = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("cold", "from the cache"):
            command = [sys.executable, *sys.argv, f"--cache={cache}"]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True
            )
            runs[name] = json.loads(done.stdout.splitlines()[-1])
    head = ["", "import, s", "trace and lower, s", "compile, s"]
    rows = [
        [name, *(f"{found[key]:.1f}" for key in ("import", "lower", "compile"))]
        for name, found in runs.items()
    ]
    table = reporting.markdown(head, rows)
    reporting.write("compile_time", options.out, {"runs": runs}, table)


def seconds(options) -> dict[str, float]:
    """Seconds of one process, which uses the cache of --cache."""
    began = time.monotonic()
    import jax

    jax.config.update("jax_compilation_cache_dir", options.cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    from vilem_jax.config.files import load_config
    from vilem_jax.distributed.mesh import one_device
    from vilem_jax.planning.compiled import lower_step

    imported = time.monotonic()
    settings = [("train.batch_size", str(options.pairs)), ("editor.max_edits", "5")]
    lowered = lower_step(load_config(options.config, settings), one_device())
    traced = time.monotonic()
    lowered.compile()
    return {
        "import": imported - began,
        "lower": traced - imported,
        "compile": time.monotonic() - traced,
    }


if __name__ == "__main__":
    main()
