"""ViT-L/16 with BERT-large on CC4M, with the training state sharded (FSDP).

    vilem train --config=pretrain_large --workdir=runs/large

Parameters, momentum parameters and Adam's moments are ten gigabytes, before gradients
and gathered weights; sharded over eight devices each holds an eighth. On devices of
80 GB `--config.compute.sharding=zero1` gathers less.

Hardware: 32 A100, or a TPU v5e-32; batch 2,048. `fsdp_devices` is a node of A100s.
Expected result: not in the paper, and not run here.
"""

from vilem_jax.config.files import packaged_config

BERT = "google-bert/bert-large-uncased"
VIT = "google/vit-large-patch16-224"


def get_config():
    config = packaged_config("pretrain_cc4m")
    for tower in (config.model.vision, config.model.text):
        tower.width = 1024
        tower.num_layers = 24
        tower.num_heads = 16
        tower.mlp_width = 4096
    config.model.num_proofread_layers = 12  # half of the text tower, as in the paper
    config.model.vision.start_from = VIT
    config.model.text.start_from = BERT
    config.editor.path = BERT

    config.compute.sharding = "fsdp"
    config.compute.fsdp_devices = 8
    config.compute.recompute = True
    return config
