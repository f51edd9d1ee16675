"""Images and texts encoded a second, against Hugging Face's eager torch (G5).

    python benchmarks/encode.py [--shape=small --batch=8 --texts=32] [--out=FOLDER]
    python benchmarks/encode.py --shape=paper --device=cuda --attention=cudnn \
        --batch=256 --texts=1024 --matmul=8192 --out=FOLDER

Ours are the project's `Encoder` programs with random weights: from uint8 pixels or
tokens on the device to unit rows, with [CLS] alone in the last layer. The peer's are
ViTModel and BertModel of the same shape without pooler, eager, with SDPA: from
normalised pixels, in the same dtype, to hidden states. So the peer has less to do at
both ends, and computes the last layer for all patches. Each system has a process, and
they take turns. The rows "from memory" are ours alone: `encode_pixels` and
`encode_tokens`, with the copies to and from the device. On CPU float32, on CUDA
bfloat16.

The peer is left out without transformers, or if torch does not find the CUDA device.
"""

import importlib.util
import time
from collections.abc import Callable

import ceilings
import reporting
import shapes
from turns import Child, in_turns, serve

GOALS = "on an H200 10,000 images/s, 1.5 x the peer's; 60,000 texts/s"

LABELS = {
    "images": "images/s",
    "texts": "texts/s",
    "images from memory": "images/s, from memory",
    "texts from memory": "texts/s, from memory",
    **ceilings.LABELS,
}


def main() -> None:
    options = parse()
    if options.serve:
        make = make_peer if options.serve == "peer" else make_ours
        return time_system(make, options)
    missing = why_no_peer(options.device)
    children = {"ours": Child("ours")} | ({} if missing else {"peer": Child("peer")})
    rounds = in_turns(children, options.rounds)
    metrics = {
        "about": {name: child.about for name, child in children.items()},
        "peer_left_out": missing,
        "rounds": rounds,
        **summary(rounds),
        "goals": GOALS,
    }
    packages = ("jax", "jaxlib", "flax", "torch", "transformers")
    reporting.write("encode", options.out, metrics, table(metrics), packages)


def parse():
    parser = reporting.arguments(__doc__)
    shapes.add_options(parser, batch=8)
    parser.add_argument("--texts", type=int, default=32, help="per batch")
    parser.add_argument("--batches", type=int, default=3, help="per turn")
    parser.add_argument("--serve", help="used by the benchmark itself")
    return parser.parse_args()


def why_no_peer(device: str) -> str:
    """The reason why the peer cannot run; "" if it can."""
    for name in ("torch", "transformers"):
        if not importlib.util.find_spec(name):
            return f"{name} is not installed: nothing to compare with."
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} finds no CUDA device: nothing to compare with."
        )
    return ""


def time_system(make: Callable, options) -> None:
    about, ways, find_ceilings = make(options)
    for way, _ in ways.values():
        way()  # compiles

    def measure() -> dict:
        found = {}
        for name, (way, size) in ways.items():
            start = time.perf_counter()
            for _ in range(options.batches):
                way()
            seconds = time.perf_counter() - start
            found[name] = options.batches * size / seconds
        return found | find_ceilings()

    serve(about, measure)


def make_ours(options) -> tuple[dict, dict, Callable]:
    """Facts about it, {name: (timed function, rows)} and a function of the ceilings."""
    import jax

    shapes.use_device(options.device)
    config = shapes.make_config(options)
    pixels = shapes.random_pixels(options.batch, config.model.vision.image_size)
    tokens = shapes.random_tokens(config, options.texts)
    images = shapes.make_encoder(config, batch_size=options.batch)
    texts = shapes.make_encoder(config, batch_size=options.texts)

    def on_device(encoder, program, rows):
        rows = jax.device_put(rows)
        run = encoder.programs[program]
        return lambda: jax.block_until_ready(run(encoder.params, rows))

    ways = {
        "images": (on_device(images, "images", pixels), options.batch),
        "texts": (on_device(texts, "texts", tokens), options.texts),
        "images from memory": (lambda: images.encode_pixels(pixels), options.batch),
        "texts from memory": (lambda: texts.encode_tokens(tokens), options.texts),
    }
    about = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    about |= {"dtype": config.compute.dtype, "attention": options.attention}
    return about, ways, lambda: ceilings.of_jax(options, config.compute.dtype)


def make_peer(options) -> tuple[dict, dict, Callable]:
    import torch

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    shape, device = shapes.SHAPES[options.shape], options.device
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    vit, bert = (
        model.to(device=device, dtype=dtype).eval() for model in peer_models(shape)
    )
    size = (options.batch, 3, shape["image"], shape["image"])
    pixels = torch.randn(size, device=device, dtype=dtype)
    size = (options.texts, shape["length"])
    tokens = torch.randint(5, shape["vocab"], size, device=device)
    attention_mask = torch.ones_like(tokens)

    @torch.inference_mode()
    def images():
        vit(pixel_values=pixels)
        ceilings.wait_for_torch(device)

    @torch.inference_mode()
    def texts():
        bert(input_ids=tokens, attention_mask=attention_mask)
        ceilings.wait_for_torch(device)

    ways = {"images": (images, options.batch), "texts": (texts, options.texts)}
    how = f"eager, {vit.config._attn_implementation}"
    about = {"torch": torch.__version__, "how": how}
    about |= {"dtype": str(dtype), "threads": torch.get_num_threads()}
    return about, ways, lambda: ceilings.of_torch(options)


def peer_models(shape: dict) -> tuple:
    """Hugging Face's ViT and BERT of this shape, without poolers."""
    from transformers import BertConfig, BertModel, ViTConfig, ViTModel

    side = dict(
        hidden_size=shape["width"],
        num_attention_heads=shape["heads"],
        intermediate_size=4 * shape["width"],
    )
    vit = ViTConfig(
        image_size=shape["image"],
        patch_size=shape["patch"],
        num_hidden_layers=shape["vision"],
        **side,
    )
    bert = BertConfig(
        vocab_size=shape["vocab"], num_hidden_layers=shape["text"], **side
    )
    plain = {"add_pooling_layer": False}
    return ViTModel(vit, **plain), BertModel(bert, **plain)


def summary(rounds: list[dict]) -> dict:
    spread = reporting.spread
    rates = {
        name: {what: spread([each[name][what] for each in rounds]) for what in found}
        for name, found in rounds[0].items()
    }
    ratios = {}
    for what in ("images", "texts"):
        if "peer" in rates:
            over = [each["ours"][what] / each["peer"][what] for each in rounds]
            ratios[what] = spread(over)
    return {"a_second": rates, "ours_over_peer": ratios}


def table(metrics: dict) -> str:
    ours = metrics["a_second"]["ours"]
    peer = metrics["a_second"].get("peer", {})
    ratios = metrics["ours_over_peer"]

    def cell(found: dict, what: str, digits: int) -> str:
        return reporting.cell(found[what], digits) if what in found else ""

    rows = []
    for what in ours:
        digits = 3 if what in ceilings.LABELS else 1
        both = [cell(found, what, digits) for found in (ours, peer)]
        rows.append([LABELS[what], *both, cell(ratios, what, 2)])
    head = ["", "ours", "Hugging Face, eager", "ours over it"]
    parts = [str(metrics["about"]), reporting.markdown(head, rows)]
    parts.append(f"{metrics['peer_left_out']} Goals: {metrics['goals']}.".strip())
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
