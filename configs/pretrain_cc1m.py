"""The paper's ablations (Tables 5 to 7): one million pairs of CC3M.

    vilem train --config=pretrain_cc1m --workdir=runs/cc1m

The rows of Table 5 are the four switches (`--config.loss.local_detect=False` ...), of
Table 6 `--config.model.num_proofread_layers=M`, of Table 7 `--config.model.levels=last`
(D) and `--config.editor.sampling=vocabulary` (F). The paper does not name the million
pairs, nor batch and epochs of these runs: here the first million, and the main run's
values.

Hardware: 32 A100 in the paper's main run.
Expected result: Table 5, zero-shot on COCO. Not run here.
"""

from vilem_jax.config.files import packaged_config, source


def get_config():
    config = packaged_config("pretrain_cc4m")
    config.data.train = {
        "cc3m": source(kind="webdataset", path="data/cc3m/*.tar", num_images=1_000_000)
    }
    config.evaluation.every_steps = 2000
    return config
