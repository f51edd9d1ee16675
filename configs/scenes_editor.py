"""A small BERT that learns the captions of `scenes`: editor and text tower start here.

    vilem train --config=scenes_editor --workdir=runs/scenes-editor \\
        --config.data.tokenizer=VOCABULARY

VOCABULARY is a folder with the vocab.txt of `scenes`; `vilem demo` leaves one beside
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
    text.vocab_size, text.max_positions = 256, 32
    text.width, text.num_layers, text.num_heads, text.mlp_width = 128, 2, 4, 256
    text.dropout_rate = 0.0
    config.model.num_proofread_layers = 1  # no tower is trained; any value will do
    config.model.init_std = 0.0

    # Half of the chosen words stay or change: nothing in a scene's caption tells which
    # colour a thing has, and a BERT that only fills masks forgets which it read.
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
