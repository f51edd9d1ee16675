"""The editor's candidates: the 20 likeliest of 30,522 tokens at each edited position.

    python benchmarks/top_k.py [--positions=256 --vocab-size=30522 --candidates=20]
        [--rounds=7] [--out=FOLDER]

A step of 2,048 pairs with 5 edits has 10,240 positions (--positions=10240). The step
uses `lax.top_k`. The alternatives are 16 candidates; blocks (the largest values lie in
the blocks with the largest maxima, so two short searches suffice); and removing the
maximum 20 times. They take turns, and the benchmark stops if one finds other
candidates.
"""

import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import reporting

BLOCK = 128
IN_USE = "lax.top_k"


def main() -> None:
    parser = reporting.arguments(__doc__)
    parser.add_argument("--positions", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=30522)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    key = jax.random.key(0)
    logits = jax.random.normal(key, (options.positions, options.vocab_size))
    ways = {
        IN_USE: partial(jax.lax.top_k, k=options.candidates),
        "lax.top_k of 16": partial(jax.lax.top_k, k=16),
        f"blocks of {BLOCK}": partial(in_blocks, k=options.candidates),
        "the maximum, removed each time": partial(one_by_one, k=options.candidates),
    }
    ways = {name: jax.jit(way) for name, way in ways.items()}
    check(ways, logits)
    rounds = [
        {name: seconds(way, logits) for name, way in ways.items()}
        for _ in range(options.rounds)
    ]
    found = {name: reporting.spread([each[name] for each in rounds]) for name in ways}
    ratios = {
        name: reporting.spread([each[IN_USE] / each[name] for each in rounds])
        for name in ways
    }
    metrics = {
        "device": jax.devices()[0].device_kind,
        "shape": [options.positions, options.vocab_size, options.candidates],
        "seconds": found,
        "speed_over_top_k": ratios,
        "rounds": rounds,
    }
    reporting.write("top_k", options.out, metrics, table(metrics))


def in_blocks(logits: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest of each row [N, V], exactly: values and positions [N, k]."""
    padding = -logits.shape[1] % BLOCK
    padded = jnp.pad(logits, ((0, 0), (0, padding)), constant_values=-jnp.inf)
    blocks = padded.reshape(len(logits), -1, BLOCK)
    _, chosen = jax.lax.top_k(blocks.max(axis=-1), k)
    inside = jnp.take_along_axis(blocks, chosen[..., None], axis=1)
    values, at = jax.lax.top_k(inside.reshape(len(logits), -1), k)
    block = jnp.take_along_axis(chosen, at // BLOCK, axis=1)
    return values, block * BLOCK + at % BLOCK


def one_by_one(logits: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The same by k maxima, each removed before the next."""
    rows = jnp.arange(len(logits))

    def take(rest, _):
        at = rest.argmax(axis=1)
        return rest.at[rows, at].set(-jnp.inf), (rest[rows, at], at)

    _, (values, at) = jax.lax.scan(take, logits, None, length=k)
    return values.T, at.T


def check(ways: dict, logits: jax.Array) -> None:
    """Compiles each way, and ends the program if one finds other candidates."""
    expected = np.asarray(ways[IN_USE](logits)[1])
    for name, way in ways.items():
        found = np.asarray(way(logits)[1])
        if (found != expected[:, : found.shape[1]]).any():
            sys.exit(f"{name} finds other candidates than {IN_USE}")


def seconds(way, logits: jax.Array) -> float:
    start = time.perf_counter()
    jax.block_until_ready(way(logits))
    return time.perf_counter() - start


def table(metrics: dict) -> str:
    positions, vocab_size, candidates = metrics["shape"]
    rows = [
        [
            name,
            reporting.cell({k: 1000 * v for k, v in each.items()}),
            reporting.cell(metrics["speed_over_top_k"][name], 2),
        ]
        for name, each in metrics["seconds"].items()
    ]
    head = ["", "ms, median (range)", f"speed over {IN_USE}"]
    return "\n".join(
        [
            f"{candidates} of {vocab_size} tokens at {positions} positions, float32, "
            f"on {metrics['device']}.",
            "",
            reporting.markdown(head, rows),
        ]
    )


if __name__ == "__main__":
    main()
