"""ViLEM on Flickr8k in an hour of 2 CPU cores: `flickr8k` made small.

The commands are those of `flickr8k`, with `--config=flickr8k_cpu`. The same run without
ViLEM's losses, a plain dual encoder to compare with:

    ... --config.loss.local_detect=False --config.loss.local_correct=False \\
        --config.loss.global_detect=False --config.loss.global_correct=False

Hardware: 2 CPU cores.
Expected result: text-to-image R@10 16.5 and image-to-text 13.6 on the test split after
an hour, where chance is 1.0; docs/results.md. It shows that the whole way works on
photographs and real weights, and how far an hour takes a ViT from scratch.
"""

from vilem_jax.config.files import packaged_config


def get_config():
    config = packaged_config("flickr8k")
    config.data.text_length = 24  # all but one caption in a hundred
    config.editor.max_edits = 4
    vision = config.model.vision
    vision.width, vision.num_layers, vision.num_heads, vision.mlp_width = 192, 6, 3, 768
    config.model.init_std = 0.0

    # Two passes over the data: nothing is seen often enough to need more than a crop.
    config.augment.num_ops = 0

    # As in `scenes`. With a queue of 8 steps, a momentum of 100 and no floor but 0.001
    # the embeddings collapsed while the loss fell (docs/results.md).
    config.loss.queue_length = 128
    config.loss.momentum = 0.98
    config.loss.min_temperature = 0.03
    config.loss.local_weight, config.loss.global_weight = 0.2, 0.05

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
