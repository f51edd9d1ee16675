"""ViLEM on the embedded data set `scenes`; no download.

`vilem demo` runs this, after it has made everything that it needs. By hand:

    vilem train --config=scenes --workdir=runs/scenes \\
        --config.model.text.start_from=runs/scenes-editor/editor \\
        --config.editor.path=runs/scenes-editor/editor \\
        --config.data.tokenizer=VOCABULARY

Editor and text tower start from the result of `--config=scenes_editor`, which also
explains VOCABULARY. The same run without ViLEM's losses, a plain dual encoder to
compare with:

    ... --config.loss.local_detect=False --config.loss.local_correct=False \\
        --config.loss.global_detect=False --config.loss.global_correct=False

Hardware: 2 CPU cores.
Expected result: docs/results.md.
"""

from vilem_jax.config.files import default_config, packaged_config, source


def get_config():
    config = default_config()
    config.data.train.scenes = source(kind="scenes", split="train")
    config.data.validation.scenes = source(kind="scenes", split="validation")
    config.data.text_length = 18  # no caption is longer
    config.data.crop_scale = (1.0, 1.0)  # a crop loses objects and relations

    # The captions name colours, sizes and positions, so no operation changes them.
    # (Images are still flipped, unless the caption names a side.)
    config.augment.num_ops = 0

    vision = config.model.vision
    # Objects stand on a 2 x 2 grid: a patch of 32 pixels shows one of them, so even a
    # small ViT learns from pixels in minutes.
    vision.image_size = 64
    vision.patch_size = 32
    vision.width = 128
    vision.num_layers = 4
    vision.num_heads = 4
    vision.mlp_width = 256
    # The text tower starts from the editor. Three layers take longer per step and learn
    # less, most of all about shapes (docs/scenes-experiments.md). Half of the two
    # layers proofread, as in the paper.
    config.model.text = packaged_config("scenes_editor").model.text
    config.model.embedding_width = 64
    config.model.num_proofread_layers = 1
    config.model.init_std = 0.0

    # Before the image features are useful, these losses teach the text tower to ignore
    # differences that the image does not show yet: all shapes become one. With half of
    # the paper's weights, a ramp, and token embeddings that the decoder does not train,
    # the contrastive loss finds shapes first.
    config.loss.local_weight = 0.4
    config.loss.global_weight = 0.1
    config.loss.proofread_ramp_steps = 200
    config.model.decoder_trains_embeddings = False

    # Keys that are much older than the momentum average differ from the batch by their
    # age, and the loss falls without learning. Here the queue holds 1 step and
    # the momentum averages over 25.
    config.loss.queue_length = 128
    config.loss.momentum = 0.96
    config.loss.min_temperature = 0.03  # Adam does not find it in a thousand steps

    # Muon learns from half of the pairs about as much as AdamW from all, most at a
    # multiple of the update size that suits both (docs/scenes-experiments.md). Its cost
    # is per step, so the batch is large.
    config.optimizer.name = "muon"
    config.optimizer.muon_rms = 0.85
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
