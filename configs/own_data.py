"""Your own images and captions, from 200 pairs to 200,000, on the machine at hand.

    vilem train --config=own_data --data=captions.json --images=images \\
        --workdir=runs/mine

Warm-up, queue, momentum, learning rate, steps, batch, validation and workers follow
from the number of pairs and the machine (`vilem_jax/config/fit.py` has the formulas and
their reasons). They are printed when the run starts and stored in its config.json: a
resumed run keeps them. --config.KEY=VALUE wins.

Splits train, val and test are those of the data. Without a val split, a tenth of the
training images is held out by a hash of their names; without any split, another tenth
is the test split.

The towers are DINOv2-S/14 and MiniLM, from the Hugging Face hub. --image-weights and
--text-weights name folders instead, --image-tower and --text-tower other shapes. MiniLM
has no masked-language head, so the same command first trains the editor, in
runs/mine/editor.

Hardware: any; on a CPU the number of steps follows from the cores.
Expected result: depends on your data; docs/training.md.
"""

from vilem_jax.config.files import default_config, source
from vilem_jax.config.freeze import to_dict
from vilem_jax.config.towers import HUB, set_towers
from vilem_jax.data.own import own_sources

FITTED = (
    "train.batch_size",
    "train.num_microbatches",
    "train.num_steps",
    "optimizer.warmup_steps",
    "optimizer.learning_rate",
    "loss.momentum",
    "loss.queue_length",
    "evaluation.every_steps",
    "checkpoint.every_steps",
    "log.every_steps",
    "editor.train_steps",
    "model.vision.image_size",
    "model.vision.num_trained_layers",
    "compute.dtype",
    "data.num_workers",
)


def get_config(
    data="",
    images="",
    kind="",
    image_tower="DINOv2-S/14",
    image_weights=HUB,
    text_tower="MiniLM",
    text_weights=HUB,
):
    config = default_config()
    for part, sources in own_sources(data, images, kind).items():
        config.data[part] = {
            name: source(**{k: v for k, v in to_dict(one).items() if k != "name"})
            for name, one in sources.items()
        }
    set_towers(
        config,
        image_tower=image_tower,
        image_weights=image_weights,
        text_tower=text_tower,
        text_weights=text_weights,
    )
    config.data.crop_scale = (0.5, 1.0)
    config.augment.num_ops = 0  # a few epochs

    # Several captions of one image often meet in a batch.
    config.loss.positives = "image"
    config.loss.min_temperature = 0.03  # as in `flickr8k_cpu`
    config.loss.local_weight = 0.2
    config.loss.global_weight = 0.05
    config.optimizer.final_learning_rate = 1e-6
    config.optimizer.beta2 = 0.98
    config.optimizer.clip_norm = 1.0
    config.checkpoint.keep_best = True

    for key in FITTED:
        *sections, last = key.split(".")
        section = config
        for name in sections:
            section = section[name]
        with section.ignore_type():
            section[last] = None
    return config
