"""Fine-tuning a model on your own captions, for retrieval.

    vilem train --config=finetune_json --workdir=runs/tuned \\
        --config.model.start_from=runs/mine \\
        --config.editor.path=EDITOR \\
        --config.data.train.mine.path=captions.json \\
        --config.data.validation.mine.path=captions.json \\
        --config.data.test.mine.path=captions.json

`start_from` is the work directory of a run, a folder of `vilem weights import` or
`export`, or a hub name. EDITOR is the folder or hub name that was `editor.path` in
pre-training; the default is bert-base-uncased. captions.json gives each image a
`split`, "train", "val" or "test"; `...mine.images` names the folder or zip of the
images if they are not beside it. Without a test split, set
--config.data.test.mine.split=val: its scores then repeat those of validation.

What differs from pre-training: every caption of an image, in the batch and in the
queue, is a positive (`loss.positives`); images of 384 pixels; the learning rate;
crops of at least half of the image. ViLEM's losses stay; to fine-tune with the
contrastive loss alone, which needs no editor and less time:

    ... --config.loss.local_detect=False --config.loss.local_correct=False \\
        --config.loss.global_detect=False --config.loss.global_correct=False

The weights of the best validation (mean of the six recalls) are in runs/tuned/best;
`--step=best` selects them. They are scored on the test split once, at the end:
runs/tuned/test.json.

With few images, a queue longer than an epoch holds several old keys of the same
captions; a `--config.loss.queue_length` of an epoch or less is enough.

Hardware: one GPU with 24 GB, as 8 microbatches of 32; the memory was not measured. With
more memory, fewer microbatches (`train.num_microbatches`) are faster and equivalent.
Expected result: depends on your data; not measured.
"""

from vilem_jax.config.files import default_config, source

BERT = "google-bert/bert-base-uncased"


def get_config():
    config = default_config()
    config.data.train.mine = source(kind="json", split="train")
    config.data.validation.mine = source(kind="json", split="val")
    config.data.test.mine = source(kind="json", split="test")
    config.data.crop_scale = (0.5, 1.0)
    config.data.num_workers = 8

    config.model.start_from = "runs/mine"
    config.model.vision.image_size = 384
    config.editor.path = BERT

    config.loss.positives = "image"

    config.optimizer.learning_rate = 1e-5
    config.optimizer.final_learning_rate = 1e-6
    config.optimizer.warmup_steps = 0
    config.train.batch_size = 256
    config.train.num_microbatches = 8
    config.train.num_epochs = 10.0

    config.evaluation.every_steps = 500
    config.checkpoint.every_steps = 500
    config.checkpoint.keep_best = True
    return config
