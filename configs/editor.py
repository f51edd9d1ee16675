"""A caption editor: BERT learns to predict the masked tokens of your captions.

For machines that bert-base-uncased is too large for, or captions unlike its training
text. It can start from any BERT: a folder or hub name with config.json,
model.safetensors and vocab.txt, with or without a masked-language head.

    vilem train --config=editor --workdir=runs/editor \\
        --config.model.text.start_from=all-MiniLM-L6-v2 \\
        --config.data.train.captions.path=flickr8k.zip/captions.json \\
        --config.data.train.captions.split=train \\
        --config.data.validation.captions.path=flickr8k.zip/captions.json \\
        --config.data.validation.captions.split=val

Images are not read. The editor is then in runs/editor/editor: the `editor.path` of a
run of ViLEM and, as the paper starts both from one BERT, its `model.text.start_from`.

Hardware: any GPU; a few CPU cores for a BERT as small as all-MiniLM-L6-v2.
Expected result: `masked_top1` on validation; docs/results.md lists measured runs.
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
