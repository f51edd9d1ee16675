"""For Flickr8k; your own images: `own_data`. A small ViT from scratch, 128 pixels.

First an editor, with `--config=editor` (see there), then

    vilem train --config=flickr8k --workdir=runs/flickr8k \\
        --config.data.train.flickr8k.path=flickr8k.zip/captions.json \\
        --config.data.validation.flickr8k.path=flickr8k.zip/captions.json \\
        --config.model.text.start_from=runs/editor/editor \\
        --config.editor.path=runs/editor/editor

The captions may be in any of the layouts of ALBEF, BLIP, Karpathy or COCO, with splits
named train and val; `...flickr8k.images` names the folder or zip of the images if they
are not beside the captions. The text tower starts from a BERT of 6 layers and width 384
(all-MiniLM-L6-v2, or the editor trained from it).

Hardware: one GPU, or a CPU for hours with a smaller ViT
(`--config.model.vision.num_layers=4 --config.train.batch_size=64`).
Expected result: far below models that start from ImageNet weights; 6,000 images are
few for a ViT from scratch. docs/results.md lists measured runs.
"""

from vilem_jax.config.files import default_config, source


def get_config():
    config = default_config()
    config.data.train.flickr8k = source(kind="json", split="train")
    config.data.validation.flickr8k = source(kind="json", split="val")
    config.data.crop_scale = (0.5, 1.0)  # the images are small already

    vision = config.model.vision
    vision.image_size = 128
    vision.patch_size = 16
    vision.width = 384
    vision.num_layers = 6
    vision.num_heads = 6
    vision.mlp_width = 1536
    text = config.model.text  # all-MiniLM-L6-v2
    text.width = 384
    text.num_layers = 6
    text.num_heads = 12
    text.mlp_width = 1536
    config.model.num_proofread_layers = 3  # half of the layers, as in the paper

    # With a longer queue and a lower minimum temperature a small run collapsed
    # (docs/results.md).
    config.loss.queue_length = 512  # two steps
    config.loss.min_temperature = 0.03

    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 500
    config.train.batch_size = 256
    config.train.num_epochs = 40.0

    config.evaluation.every_steps = 500
    config.checkpoint.every_steps = 500
    return config
