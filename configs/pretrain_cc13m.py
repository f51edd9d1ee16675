"""The paper's pre-training on CC13M: CC4M and what is still available of CC12M.

    vilem train --config=pretrain_cc13m --workdir=runs/cc13m

13 million images, 14.1 million captions; everything else as in pretrain_cc4m.py. An
epoch visits every pair once; the `weight` of a source changes its share.

Hardware: 32 A100 in the paper; batch 2,048.
Expected result: Table 1 of the paper after fine-tuning. Not run here.
"""

from vilem_jax.config.files import packaged_config, source


def get_config():
    config = packaged_config("pretrain_cc4m")
    config.data.train.cc12m = source(kind="webdataset", path="data/cc12m/*.tar")
    config.evaluation.every_steps = 5000
    return config
