"""A caption editor: BERT learns to name the masked words of your captions.

For whom bert-base-uncased is out of reach, or whose captions are unlike its books. Any
BERT serves as the start: a folder or hub name with config.json, model.safetensors and
vocab.txt, with or without a masked-language head.

    vilem train --config=editor --workdir=runs/editor \\
        --config.model.text.start_from=all-MiniLM-L6-v2 \\
        --config.data.train.captions.path=flickr8k.zip/captions.json \\
        --config.data.train.captions.split=train \\
        --config.data.validation.captions.path=flickr8k.zip/captions.json \\
        --config.data.validation.captions.split=val

Images are not read. The editor is then in runs/editor/editor: the `editor.path` and,
as the paper starts both from one BERT, the `model.text.start_from` of a run of ViLEM.

Hardware: any GPU; a few CPU cores for a BERT as small as all-MiniLM-L6-v2.
Expected result: `masked_top1` on validation; see docs/results.md for what was run.
"""

from vilem_jax.config.files import default_config, source


def get_config():
    config = default_config()
    config.task = "editor"
    config.data.train.captions = source(kind="json")
    config.data.validation.captions = source(kind="json")
    config.model.num_proofread_layers = 1  # no tower is trained; any value will do

    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 50
    config.train.batch_size = 48
    config.train.num_steps = 600
    config.compute.dtype = "float32"

    config.evaluation.text_length = 30
    config.checkpoint.every_steps = 200
    return config
