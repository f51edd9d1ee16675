"""ViT-L/16 with BERT-large on CC4M: a state that wants to be split.

    vilem train --config=pretrain_large --workdir=runs/large

Parameters, momentum copies and Adam's moments are ten gigabytes, before gradients and
gathered weights; split over eight neighbours they are an eighth. On chips of 80 GB
`--config.compute.sharding=zero1` gathers less.

Hardware: 32 A100, or a TPU v5e-32; batch 2,048. `fsdp_devices` is a node of A100s.
Expected result: not in the paper, and not run here.
"""

from vilem_jax.config.files import packaged_config

BERT = "google-bert/bert-large-uncased"
VIT = "google/vit-large-patch16-224"


def get_config():
    config = packaged_config("pretrain_cc4m")
    vision, text = config.model.vision, config.model.text
    vision.width, vision.num_layers, vision.num_heads, vision.mlp_width = (
        1024,
        24,
        16,
        4096,
    )
    text.width, text.num_layers, text.num_heads, text.mlp_width = 1024, 24, 16, 4096
    config.model.num_proofread_layers = 12  # half of the text tower, as in the paper
    vision.start_from = VIT
    text.start_from = BERT
    config.editor.path = BERT

    config.compute.sharding = "fsdp"
    config.compute.fsdp_devices = 8
    config.compute.recompute = True
    return config
