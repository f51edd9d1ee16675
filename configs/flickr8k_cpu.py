"""ViLEM on Flickr8k in an hour on 2 CPU cores: `flickr8k` in small.

The commands are those of `flickr8k`, with `--config=flickr8k_cpu`. The same run without
ViLEM's losses, a plain dual encoder to compare with:

    ... --config.loss.local_detect=False --config.loss.local_correct=False \\
        --config.loss.global_detect=False --config.loss.global_correct=False

Hardware: 2 CPU cores.
Expected result: text-to-image R@10 16.5 and image-to-text 13.6 on the test split after
an hour (chance: 1.0); docs/results.md. It shows that every stage works on photographs
and real weights, and what a ViT from scratch learns in an hour.
"""

from vilem_jax.config.files import packaged_config


def get_config():
    config = packaged_config("flickr8k")
    config.data.text_length = 24  # 99 % of the captions are not longer
    config.editor.max_edits = 4
    vision = config.model.vision
    vision.width = 192
    vision.num_heads = 3
    vision.mlp_width = 768
    config.model.init_std = 0.0

    # Two passes over the data need no augmentation beyond the crop.
    config.augment.num_ops = 0

    # As in `scenes`. With a queue of 8 steps, a momentum of 0.99 and a minimum
    # temperature of 0.001 the embeddings collapsed while the loss fell
    # (docs/results.md).
    config.loss.queue_length = 128
    config.loss.momentum = 0.98
    config.loss.min_temperature = 0.03
    config.loss.local_weight = 0.2
    config.loss.global_weight = 0.05

    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 100
    config.optimizer.beta2 = 0.98
    config.optimizer.clip_norm = 1.0
    config.train.batch_size = 64
    config.train.num_steps = 1000
    config.compute.dtype = "float32"

    config.evaluation.every_steps = 200
    config.checkpoint.every_steps = 100
    return config
