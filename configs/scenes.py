"""ViLEM on the embedded data set `scenes`; no download.

`vilem demo` runs this, with all that it needs made first. By hand:

    vilem train --config=scenes --workdir=runs/scenes \\
        --config.model.text.start_from=runs/scenes-editor/editor \\
        --config.editor.path=runs/scenes-editor/editor \\
        --config.data.tokenizer=VOCABULARY

The folder that both start from is what `--config=scenes_editor` leaves; see there for
VOCABULARY. The same run without ViLEM's losses, a plain dual encoder to compare with:

    ... --config.loss.local_detect=False --config.loss.local_correct=False \\
        --config.loss.global_detect=False --config.loss.global_correct=False

Hardware: 2 CPU cores.
Expected result: docs/results.md.
"""

from vilem_jax.config_files import default_config, source

VOCABULARY_SIZE = 256  # WordPiece over the captions of the training split


def get_config():
    config = default_config()
    config.data.train.scenes = source(kind="scenes", split="train")
    config.data.validation.scenes = source(kind="scenes", split="validation")
    config.data.text_length = 24
    config.data.crop_scale = (0.8, 1.0)  # a smaller crop loses objects and relations

    # Colours, sizes and places are what the captions tell: leave them as they are.
    config.augment.num_ops = 0

    vision = config.model.vision
    vision.image_size, vision.patch_size = 64, 8
    vision.width, vision.num_layers, vision.num_heads, vision.mlp_width = 128, 4, 4, 512
    text = config.model.text
    text.vocab_size, text.max_positions = VOCABULARY_SIZE, 32
    text.width, text.num_layers, text.num_heads, text.mlp_width = 128, 4, 4, 512
    config.model.embedding_width = 128
    config.model.num_proofread_layers = 2

    config.loss.queue_length = 1024

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    config.train.batch_size = 64
    config.train.num_steps = 4000
    config.compute.dtype = "float32"

    config.evaluation.every_steps = 1000
    config.evaluation.text_length = 24
    config.checkpoint.every_steps = 1000
    return config
