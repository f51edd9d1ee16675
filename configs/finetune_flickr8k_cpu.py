"""Fine-tuning a `flickr8k_cpu` run on 2 CPU cores: `finetune_json` in small.

    vilem train --config=finetune_flickr8k_cpu --workdir=runs/flickr8k-tuned \\
        --config.model.start_from=runs/flickr8k \\
        --config.editor.path=runs/editor/editor \\
        --config.data.train.flickr8k.path=flickr8k.zip/captions.json \\
        --config.data.validation.flickr8k.path=flickr8k.zip/captions.json \\
        --config.data.test.flickr8k.path=flickr8k.zip/captions.json

300 steps of 64 pairs. To compare with pre-training's targets, at the same start, steps
and schedule, run `... --config.loss.positives=own` in another work directory.

Hardware: 2 CPU cores.
Expected result: docs/results.md. The image size stays at 128 and the crop at half of
the image or more, as in pre-training, so that only the targets differ.
"""

from vilem_jax.config.files import default_config, packaged_config, source


def get_config():
    config = packaged_config("flickr8k_cpu")
    config.data.test.flickr8k = source(kind="json", split="test")

    # The run that it starts from decides the shape.
    config.model = default_config().model
    config.model.start_from = "runs/flickr8k"
    config.model.vision.image_size = 128

    config.loss.positives = "image"

    config.optimizer.learning_rate = 1e-4
    config.optimizer.final_learning_rate = 1e-6
    config.optimizer.warmup_steps = 20  # Adam's moments start from 0
    config.train.num_steps = 300

    config.evaluation.every_steps = 100
    config.checkpoint.every_steps = 100
    config.checkpoint.keep_best = True
    return config
