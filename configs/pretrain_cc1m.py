"""The paper's ablations (Tables 5 to 7): one million pairs of CC3M.

    vilem train --config=pretrain_cc1m --workdir=runs/cc1m

The rows of Table 5 are the four switches (`--config.loss.local_detect=False` ...), of
Table 6 `--config.model.num_proofread_layers=M`, of Table 7 `--config.model.levels=last`
(D) and `--config.editor.sampling=vocabulary` (F). The paper does not say which million,
nor batch and epochs of these runs: here the first million, and the main run's values.

Hardware: 32 A100 in the paper's main run.
Expected result: Table 5, zero-shot on COCO. Not run here.
"""

from vilem_jax.config_files import default_config, source

BERT = "google-bert/bert-base-uncased"
VIT = "facebook/deit-base-patch16-224"


def get_config():
    config = default_config()
    config.data.train.cc3m = source(
        kind="webdataset", path="data/cc3m/*.tar", num_images=1_000_000
    )
    config.data.validation.coco = source(
        kind="json", path="data/dataset_coco.json", images="data/coco", split="val"
    )
    config.data.tokenizer = BERT
    config.data.num_workers = 16

    config.model.vision.start_from = VIT
    config.model.text.start_from = BERT
    config.editor.path = BERT

    config.evaluation.every_steps = 2000
    return config
