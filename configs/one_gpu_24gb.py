"""For 100,000 pairs and more on one GPU of 24 GB; fewer, or elsewhere: `own_data`.

    vilem train --config=one_gpu_24gb --workdir=runs/mine \\
        --config.data.train.mine.path=captions.json \\
        --config.data.train.mine.images=images \\
        --config.data.validation.mine.path=captions.json \\
        --config.data.validation.mine.images=images

captions.json gives each image a `split`, "train" or "val", as Karpathy's files do. For
two files without splits, set the path of each, and leave the splits empty:
--config.data.train.mine.split= and --config.data.validation.mine.split=.

Batch: 256 pairs a step as 4 microbatches of 64. Microbatches are exact here (negatives
are the whole batch and the queue): double `train.num_microbatches` if the GPU runs out
of memory, halve it if half of the memory is free. `compute.recompute=True` saves more,
for about a third more work.

Learning rate: the paper's 3e-4 belongs to batch 2,048. With AdamW it scales with the
square root of the batch: 3e-4 * sqrt(256 / 2048) = 1.06e-4, which is set here. Change
both together. The queue keeps 65,536 negatives for every batch size.

Hardware: one GPU with 24 GB.
Expected result: depends on your data; neither the run nor its memory was measured.
"""

from vilem_jax.config.files import default_config, source

BERT = "google-bert/bert-base-uncased"
VIT = "facebook/deit-base-patch16-224"


def get_config():
    config = default_config()
    config.data.train.mine = source(kind="json", split="train")
    config.data.validation.mine = source(kind="json", split="val")
    config.data.tokenizer = BERT
    config.data.num_workers = 8

    config.model.vision.start_from = VIT
    config.model.text.start_from = BERT
    config.editor.path = BERT

    config.train.batch_size = 256
    config.train.num_microbatches = 4
    config.optimizer.learning_rate = 1.06e-4
    config.optimizer.final_learning_rate = 3.5e-6
    return config
