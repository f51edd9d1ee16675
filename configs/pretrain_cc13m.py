"""The paper's pre-training on CC13M: CC4M and what is left of CC12M.

    vilem train --config=pretrain_cc13m --workdir=runs/cc13m

13 million pictures, 14.1 million captions; everything else as in pretrain_cc4m.py. An
epoch visits every pair once; other shares are set by each source's `weight`.

Hardware: 32 A100 in the paper; batch 2,048.
Expected result: Table 1 of the paper after fine-tuning. Not run here.
"""

from vilem_jax.config_files import default_config, source

BERT = "google-bert/bert-base-uncased"
VIT = "facebook/deit-base-patch16-224"


def get_config():
    config = default_config()
    train = config.data.train
    train.cc3m = source(kind="webdataset", path="data/cc3m/*.tar")
    train.cc12m = source(kind="webdataset", path="data/cc12m/*.tar")
    train.sbu = source(kind="webdataset", path="data/sbu/*.tar")
    train.coco = source(
        kind="json", path="data/dataset_coco.json", images="data/coco", split="train"
    )
    train.visual_genome = source(
        kind="json", path="data/visual_genome.json", images="data/visual_genome"
    )
    config.data.validation.coco = source(
        kind="json", path="data/dataset_coco.json", images="data/coco", split="val"
    )
    config.data.tokenizer = BERT
    config.data.num_workers = 16

    config.model.vision.start_from = VIT
    config.model.text.start_from = BERT
    config.editor.path = BERT

    config.evaluation.every_steps = 5000
    return config
