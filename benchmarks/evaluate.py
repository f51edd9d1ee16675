"""A retrieval evaluation by stage, and against a cross-encoder's re-ranking (G6, G7).

    python benchmarks/evaluate.py [--shape=small --images=50 --captions=250]
        [--out=FOLDER]
    python benchmarks/evaluate.py --shape=paper --device=cuda --attention=cudnn \
        --image-size=384 --images=5000 --captions=25000 --batch=256 --queries=256 \
        --matmul=8192 --out=FOLDER

The evaluation is the project's, with random weights: `encode_pixels` of uint8 pixels in
memory, `encode_tokens` of tokens, `retrieval_metrics` to recall both ways. It includes
copies to and from the device, but no reading, decoding, tokenising or compiling.

Re-ranking follows ALBEF: the k best candidates of each query go through the upper half
of BERT's layers with cross-attention on all of an image's tokens (reranker.py). A turn
times --queries queries, one after the other, from a text's hidden states and the
candidates' indices on the device to k scores on the host, and takes the mean.
"recomputed" computes keys and values for each pair, as ALBEF does. "cached" gathers
them from a cache on the device, whose creation is not timed. Candidates are sampled
from a pool of --pool images.

The ratio is the re-ranking of one query over the whole evaluation divided by its
queries, images and captions. The re-ranker's own towers and its first ranking are not
timed, which is in its favour. All take turns; on CPU float32, on CUDA bfloat16.
"""

import time
from functools import partial

import ceilings
import numpy as np
import reporting
import shapes

GOALS = (
    "on an H200 2.2 s in total; re-ranking over ours 64 at k = 128 and 130 at k = 256, "
    "recomputed; 30 cached"
)


def main() -> None:
    options = parse()
    shapes.use_device(options.device)
    config = shapes.make_config(options, image_size=options.image_size)
    evaluation = Evaluation(config, options)
    ways = make_rerankings(config, options)
    rounds = []
    for _ in range(options.rounds):
        one = {"seconds": evaluation.seconds()}
        one |= {name: way() for name, way in ways.items()}
        rounds.append(one | ceilings.of_jax(options, config.compute.dtype))
        print(rounds[-1], flush=True)
    metrics = {
        "about": {
            "images": options.images,
            "captions": options.captions,
            "image_size": config.model.vision.image_size,
            "dtype": config.compute.dtype,
            "pool": options.pool,
            "queries_a_turn": options.queries,
        },
        "rounds": rounds,
        **summary(rounds, list(ways), options.images + options.captions),
        "goals": GOALS,
    }
    packages = ("jax", "jaxlib", "flax", "numpy")
    reporting.write("evaluate", options.out, metrics, table(metrics), packages)


def parse():
    parser = reporting.arguments(__doc__)
    shapes.add_options(parser, batch=16)
    parser.add_argument("--image-size", type=int, default=0, help="0: the shape's")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--captions", type=int, default=250)
    parser.add_argument("--queries", type=int, default=1, help="re-ranked per turn")
    parser.add_argument("--pool", type=int, default=256, help="images re-ranked")
    parser.add_argument("--candidates", type=int, nargs="+", default=[128, 256])
    options = parser.parse_args()
    if options.captions < options.images:
        parser.error("--captions: every image needs at least one")
    if options.pool < max(options.candidates):
        parser.error("--pool: at least as many images as candidates")
    return options


class Evaluation:
    """Images and captions in memory, and the encoder that ranks them."""

    def __init__(self, config, options):
        self._encoder = shapes.make_encoder(config, batch_size=options.batch)
        self._pixels = shapes.random_pixels(
            options.images, config.model.vision.image_size
        )
        self._tokens = shapes.random_tokens(config, options.captions)
        self._image_of_text = np.arange(options.captions) % options.images
        self.seconds()  # compiles

    def seconds(self) -> dict[str, float]:
        """By stage of `timing.STAGES`; "all" is the wall clock of the whole."""
        from vilem_jax.evaluation.recall import retrieval_metrics
        from vilem_jax.evaluation.timing import measured

        encoder = self._encoder.timed()
        start = time.perf_counter()
        retrieval_metrics(
            encoder.encode_pixels(self._pixels),
            encoder.encode_tokens(self._tokens),
            self._image_of_text,
            clock=encoder.clock,
        )
        return measured(encoder)["seconds"] | {"all": time.perf_counter() - start}


def make_rerankings(config, options) -> dict:
    """{name: function that re-ranks --queries queries and returns seconds a query}."""
    import jax.numpy as jnp
    from reranker import make_reranker

    reranker = make_reranker(config, options.pool)
    rng = np.random.default_rng(0)
    ways = {}
    for count in options.candidates:
        samples = [
            jnp.asarray(rng.choice(options.pool, count, replace=False))
            for _ in range(options.queries)
        ]
        scores = [
            np.asarray(rank(reranker.text, samples[0]), np.float32)  # compiles
            for rank in (reranker.recomputed, reranker.cached)
        ]
        # Both are the same model. With random weights, scores of images differ by 1e-4
        # only: in bfloat16, whose steps are larger, the check would show nothing.
        if config.compute.dtype == "float32":
            np.testing.assert_allclose(*scores, rtol=1e-5)
        for name in ("recomputed", "cached"):
            rank = getattr(reranker, name)
            ways[f"k = {count}, {name}"] = partial(
                seconds_a_query, rank, reranker.text, samples
            )
    return ways


def seconds_a_query(rank, text, samples: list) -> float:
    start = time.perf_counter()
    for candidates in samples:
        np.asarray(rank(text, candidates))
    return (time.perf_counter() - start) / len(samples)


def summary(rounds: list[dict], ways: list[str], num_queries: int) -> dict:
    spread = reporting.spread
    ours = [each["seconds"]["all"] / num_queries for each in rounds]
    ratios = {
        way: spread([each[way] / own for each, own in zip(rounds, ours, strict=True)])
        for way in ways
    }
    stages = rounds[-1]["seconds"]
    return {
        "stage_seconds": {
            stage: spread([each["seconds"][stage] for each in rounds])
            for stage in stages
        },
        "ours_seconds_a_query": spread(ours),
        "rerank_seconds_a_query": {
            way: spread([each[way] for each in rounds]) for way in ways
        },
        "rerank_over_ours": ratios,
        "ceilings": ceilings.spreads(rounds),
    }


def table(metrics: dict) -> str:
    cell = reporting.cell
    stages = [[name, cell(each)] for name, each in metrics["stage_seconds"].items()]
    stages += ceilings.rows(metrics["ceilings"])
    ours = milli(metrics["ours_seconds_a_query"])
    rows = [["ours, the whole over its queries", ours, ""]]
    for way, each in metrics["rerank_seconds_a_query"].items():
        rows.append([way, milli(each), cell(metrics["rerank_over_ours"][way], 1)])
    head = ["re-ranking", "ms a query", "over ours"]
    return "\n\n".join(
        [
            str(metrics["about"]),
            reporting.markdown(["stage", "s"], stages),
            reporting.markdown(head, rows),
            f"Goals: {metrics['goals']}.",
        ]
    )


def milli(spread: dict) -> str:
    return reporting.cell({key: 1e3 * value for key, value in spread.items()})


if __name__ == "__main__":
    main()
