"""The paper's fine-tuning on COCO, Karpathy's split: the right half of its Table 1.

    vilem train --config=finetune_coco --workdir=runs/coco \\
        --config.model.start_from=runs/cc4m

5 epochs of 2,213 steps of 256 pairs, 113,287 images with 566,747 captions. It reads
data/dataset_coco.json (Karpathy's) and data/coco/train2014, val2014. The weights of the
best of five validations are scored on the 5,000 test images once, at the end:
runs/coco/test.json (all 25,010 captions). `finetune_json` explains the targets, and how
to train without ViLEM's losses.

Hardware: 8 GPUs with 40 GB, or fewer with `--config.train.num_microbatches=4`; not
measured.
Expected result: Table 1, pre-trained on CC4M (5.1 M pairs): image to text R@1/5/10
69.0/90.7/95.1, text to image 52.6/79.4/87.2. Not measured here.
"""

from vilem_jax.config.files import packaged_config, source


def get_config():
    config = packaged_config("finetune_json")
    data = dict(kind="json", path="data/dataset_coco.json", images="data/coco")
    config.data.train = {"coco": source(split="train", **data)}
    config.data.validation = {"coco": source(split="val", **data)}
    config.data.test = {"coco": source(split="test", **data)}
    config.data.num_workers = 16

    config.model.start_from = "runs/cc4m"

    config.train.num_microbatches = 1
    config.train.num_epochs = 5.0
    config.evaluation.every_steps = 2213  # an epoch
    return config
