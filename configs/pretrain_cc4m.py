"""The paper's pre-training on CC4M: CC3M, SBU, COCO and Visual Genome.

    vilem train --config=pretrain_cc4m --workdir=runs/cc4m

4 million images, 5.1 million captions, 20 epochs of 2,490 steps. The sources are read
from ./data; `--config.data.train.sbu.path=...` sets another path. Check them with
`vilem data check` first.

Hardware: 32 A100 in the paper; batch 2,048.
Expected result: Table 1 of the paper after fine-tuning. Not run here.
"""

from vilem_jax.config.files import default_config, source

BERT = "google-bert/bert-base-uncased"
VIT = "facebook/deit-base-patch16-224"  # ViT-B/16 on ImageNet-1k, as ALBEF starts


def get_config():
    config = default_config()
    train = config.data.train
    train.cc3m = source(kind="webdataset", path="data/cc3m/*.tar")
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

    config.evaluation.every_steps = 2500
    return config
