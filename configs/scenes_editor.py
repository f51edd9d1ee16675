"""A small BERT trained on the captions of `scenes`: the start of editor and text tower.

    vilem train --config=scenes_editor --workdir=runs/scenes-editor \\
        --config.data.tokenizer=VOCABULARY

VOCABULARY is a folder with the vocab.txt of `scenes`; `vilem demo` writes one beside
its report. The editor is then in runs/scenes-editor/editor.

Hardware: 2 CPU cores.
Expected result: `masked_top1` on validation, see docs/results.md.
"""

from vilem_jax.config.files import default_config, source


def get_config():
    config = default_config()
    config.task = "editor"
    config.data.train.scenes = source(kind="scenes", split="train")
    config.data.validation.scenes = source(kind="scenes", split="validation")
    config.data.text_length = 18

    text = config.model.text
    text.vocab_size = 256  # WordPiece over the captions of the training split
    text.max_positions = 32
    text.width = 128
    text.num_layers = 2
    text.num_heads = 4
    text.mlp_width = 256
    text.dropout_rate = 0.0  # a few epochs: no caption is seen often
    config.model.num_proofread_layers = 1  # no tower is trained; any value will do
    config.model.init_std = 0.0

    # Half of the chosen tokens are not masked: nothing else in a caption predicts the
    # colour of an object, and a BERT that only fills masks forgets which it read.
    config.editor.edit_rate = 0.3
    config.editor.mask_rate = 0.5

    config.optimizer.learning_rate = 7e-4
    config.optimizer.warmup_steps = 30
    config.optimizer.beta2 = 0.98
    config.train.batch_size = 64
    config.train.num_steps = 400
    config.compute.dtype = "float32"

    config.evaluation.text_length = 18
    config.checkpoint.every_steps = 400
    return config
