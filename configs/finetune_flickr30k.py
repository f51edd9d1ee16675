"""The paper's fine-tuning on Flickr30K, Karpathy's split: the left half of its Table 1.

    vilem train --config=finetune_flickr30k --workdir=runs/flickr30k \\
        --config.model.start_from=runs/cc4m

10 epochs of 566 steps of 256 pairs, 29,000 images with five captions each. It reads
data/dataset_flickr30k.json (Karpathy's) and the images in data/flickr30k. The weights
of the best of ten validations are scored on the 1,000 test images once, at the end:
runs/flickr30k/test.json. `finetune_json` explains the targets, and how to train without
ViLEM's losses. "Zero-shot on Flickr30K" in ALBEF and BLIP is the model of
`finetune_coco`, scored on this test split.

Hardware: 8 GPUs with 40 GB, or fewer with `--config.train.num_microbatches=4`; not
measured.
Expected result: Table 1, pre-trained on CC4M (5.1 M pairs): image to text R@1/5/10
92.4/99.2/99.7, text to image 78.1/94.6/97.0. Not measured here.
"""

from vilem_jax.config.files import packaged_config, source


def get_config():
    config = packaged_config("finetune_coco")
    data = dict(
        kind="json", path="data/dataset_flickr30k.json", images="data/flickr30k"
    )
    config.data.train = {"flickr30k": source(split="train", **data)}
    config.data.validation = {"flickr30k": source(split="val", **data)}
    config.data.test = {"flickr30k": source(split="test", **data)}
    config.train.num_epochs = 10.0
    config.evaluation.every_steps = 566  # an epoch
    return config
