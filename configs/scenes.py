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

from vilem_jax.config.files import default_config, source

VOCABULARY_SIZE = 256  # WordPiece over the captions of the training split


def get_config():
    config = default_config()
    config.data.train.scenes = source(kind="scenes", split="train")
    config.data.validation.scenes = source(kind="scenes", split="validation")
    config.data.text_length = 18  # no caption is longer
    config.data.crop_scale = (1.0, 1.0)  # a crop loses objects and relations

    # Colours, sizes and places are what the captions tell: leave them as they are.
    # (Images are mirrored still, where the caption names no side.)
    config.augment.num_ops = 0

    vision = config.model.vision
    # Objects stand on a 2 x 2 grid: a patch of 32 pixels shows one of them, which
    # is what lets so small a ViT learn from pixels in minutes.
    vision.image_size, vision.patch_size = 64, 32
    vision.width, vision.num_layers, vision.num_heads, vision.mlp_width = 128, 4, 4, 256
    text = config.model.text
    text.vocab_size, text.max_positions = VOCABULARY_SIZE, 32
    # Three layers are slower a step and learn less from it, shapes above all
    # (docs/scenes-experiments.md). Half of the two proofread, as in the paper.
    text.width, text.num_layers, text.num_heads, text.mlp_width = 128, 2, 4, 256
    text.dropout_rate = 0.0  # four epochs: nothing is seen often
    config.model.embedding_width = 64
    config.model.num_proofread_layers = 1
    config.model.init_std = 0.0

    # What the image does not tell yet, these losses teach the text tower to ignore:
    # all shapes become one. At half of the paper's weights, reached by a ramp, and with
    # embeddings that the decoder does not pull together, contrast finds shapes first.
    config.loss.local_weight, config.loss.global_weight = 0.4, 0.1
    config.loss.proofread_ramp_steps = 200
    config.model.decoder_trains_embeddings = False

    # A queue that is old against the momentum is told from the batch by its age alone,
    # and the loss falls without learning: 1 step of queue, 25 of momentum.
    config.loss.queue_length = 128
    config.loss.momentum = 0.96
    config.loss.min_temperature = 0.03  # a thousand steps are few for Adam to find it

    # Muon learns from half of the pairs about what AdamW does from all, and most with
    # several times the step that suits both (docs/scenes-experiments.md). What it costs
    # it costs once a step, so the batch is large.
    config.optimizer.name, config.optimizer.muon_rms = "muon", 0.85
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 25
    config.optimizer.beta2 = 0.98
    config.optimizer.clip_norm = 1.0
    config.train.batch_size = 128
    config.train.num_steps = 1000
    config.compute.dtype = "float32"

    config.evaluation.every_steps = 250
    config.evaluation.text_length = 18
    config.evaluation.num_proofread_images = 500
    config.checkpoint.every_steps = 500
    return config
