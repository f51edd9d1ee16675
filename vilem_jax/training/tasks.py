"""What a run trains: ViLEM, or the editor. Each task gives `run.py` the same few parts.

The parts are pure or compiled; what a task needs beside the state (the frozen editor,
the validation data) it holds on to, and never changes.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vilem_jax.config.schema import Config
from vilem_jax.data.sources.missing import check_complete
from vilem_jax.data.sources.source import open_source
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.distributed import processes
from vilem_jax.distributed.mesh import (
    Layout,
    on_one_device,
    over_batch,
    put_replicated,
    replicated,
)
from vilem_jax.editing.editor import FrozenEditor, editor_graph
from vilem_jax.editing.loading import load_editor, token_tables
from vilem_jax.editing.stored_edits import make_edits
from vilem_jax.errors import UserError
from vilem_jax.evaluation.encoding import make_encoder
from vilem_jax.evaluation.proofread import evaluate_proofreading
from vilem_jax.evaluation.retrieval import encode_source, evaluate_retrieval
from vilem_jax.runs.origin import TOKENIZER_FOLDER, load_origin
from vilem_jax.training import editor_step, starting
from vilem_jax.training.state import (
    abstract_state,
    initial_params,
    initial_state,
    state_sharding,
    with_shardings,
)
from vilem_jax.training.step import make_train_step
from vilem_jax.weights.formats.huggingface_bert import save_masked_language_model

EDITOR_FOLDER = "editor"  # in the work directory of an editor's run


@dataclass(frozen=True)
class Task:
    """What `run.py` needs to know."""

    image_size: int  # of the batches; 0: captions alone
    abstract_state: Any  # the state's shapes and where they lie
    begin: Callable[[jax.Array], Any]  # key -> the state of step 0, on the mesh
    step: Callable  # (state, batch, key) -> (state, metrics), compiled
    evaluate: Callable[[Any], dict]  # state -> metrics on validation
    finish: Callable[[Any], None]  # what the last state is made into
    test: Callable[[Any], dict] | None = None  # parameters -> metrics on the test split


def make_task(
    config: Config,
    layout: Layout,
    tokenizer: Tokenizer,
    schedule: Callable,
    workdir: Path,
) -> Task:
    make = {"vilem": _vilem_task, "editor": _editor_task}[config.task]
    return make(config, layout, tokenizer, schedule, workdir)


def _vilem_task(config, layout, tokenizer, schedule, workdir) -> Task:
    mesh = layout.mesh
    platform = mesh.devices.flat[0].platform
    if config.compute.attention == "cudnn" and platform != "gpu":
        raise UserError(
            "config.compute.attention='cudnn' needs GPUs, and the devices of this run "
            f"are of kind {platform!r}: set it to 'xla'"
        )
    vocabulary = tokenizer.vocabulary
    tables = token_tables(tokenizer)
    editor, graph = FrozenEditor({}, tables), None
    if config.loss.has_proofreading and config.editor.path:
        own, params = load_editor(config, tokenizer)
        editor = FrozenEditor(params, tables)
        graph = editor_graph(own)
    editor = put_replicated(editor, mesh)
    train_step = make_train_step(
        config,
        schedule,
        graph,
        pad_id=vocabulary.pad_id,
        mask_id=vocabulary.mask_id,
        layout=layout,
    )
    shapes = abstract_state(config)
    shardings = state_sharding(shapes, layout)
    whole, rows = replicated(mesh), over_batch(mesh)
    compiled = jax.jit(
        train_step,
        in_shardings=(shardings, whole, rows, whole),
        out_shardings=(shardings, whole),
        donate_argnames="state",
    )

    def begin(key):
        if config.model.start_from:
            params, slow = load_origin(config)
        else:
            # Whole on every process: files may be device_put in place of parts of it.
            make = jax.jit(lambda k: initial_params(config, k), out_shardings=whole)
            params = make(key)
            params = slow = starting.pretrained(config, params)
        make = jax.jit(
            lambda p, m: initial_state(config, p, m), out_shardings=shardings
        )
        return make(params, slow)

    return Task(
        image_size=config.model.vision.image_size,
        abstract_state=with_shardings(shapes, shardings),
        begin=begin,
        step=lambda state, batch, key: compiled(state, editor, batch, key),
        evaluate=_make_vilem_evaluation(config, tokenizer, graph, editor),
        finish=lambda state: None,
        test=_make_test(config, tokenizer),
    )


def _open_complete(configs, part) -> list:
    """The sources to judge by: what they lack must be said before the run."""
    sources = [open_source(config) for config in configs]
    for source in sources:
        check_complete(source, f"config.data.{part}.{source.name}")
    return sources


def _make_test(config, tokenizer):
    """`test(params)`: recalls with their protocol, {source: metrics}."""
    sources = _open_complete(config.data.test, "test")

    def test(params) -> dict:
        encoder = make_encoder(config, params, tokenizer)
        return {source.name: evaluate_retrieval(encoder, source) for source in sources}

    return test if sources else None


def _make_vilem_evaluation(config, tokenizer, editor_graph, editor):
    """`evaluate(state)`: recalls, and proofreading with right and shuffled images.

    Without an editor, as a run with prepared edits may be, recalls alone.
    """
    sources = _open_complete(config.data.validation, "validation")
    encoder = make_encoder(config, {}, tokenizer)
    settings = config.evaluation
    edits = [
        make_edits(
            editor_graph,
            editor,
            tokenizer,
            source,
            config.evaluation_editor,
            seed=config.seed,
            text_length=settings.text_length,
            num_images=settings.num_proofread_images,
        )
        for source in sources
        if editor_graph is not None
    ]

    def evaluate(state) -> dict:
        params = on_one_device(state.params)  # which scores alone
        now = dataclasses.replace(encoder, params=params)
        metrics = {}
        for number, source in enumerate(sources):
            metrics[source.name] = encode_source(now, source).metrics()
            if edits:
                metrics[source.name]["proofread"] = evaluate_proofreading(
                    now,
                    edits[number],
                    source,
                    with_shuffled=len(np.unique(edits[number].image)) > 1,
                )
        return metrics

    return evaluate


def _editor_task(config, layout, tokenizer, schedule, workdir) -> Task:
    mesh = layout.mesh
    vocabulary = tokenizer.vocabulary
    ids = {"pad_id": vocabulary.pad_id, "mask_id": vocabulary.mask_id}
    tables = token_tables(tokenizer)
    step = editor_step.make_editor_step(config, schedule, tables, **ids)
    whole, rows = replicated(mesh), over_batch(mesh)
    compiled = jax.jit(
        step,
        in_shardings=(whole, rows, whole),
        out_shardings=(whole, whole),
        donate_argnames="state",
    )

    def begin(key):
        params = jax.jit(
            lambda k: editor_step.initial_editor_params(config, k),
            out_shardings=whole,
        )(key)
        params = starting.pretrained_editor(config, params)
        return jax.jit(
            lambda p: editor_step.initial_editor_state(config, p),
            out_shardings=whole,
        )(params)

    def finish(state):
        params = jax.tree.map(np.asarray, state.params)
        tokens = workdir / TOKENIZER_FOLDER
        text, folder = config.model.text, workdir / EDITOR_FOLDER
        processes.on_process_0(
            lambda: save_masked_language_model(folder, params, text, tokens)
        )

    return Task(
        image_size=0,
        abstract_state=with_shardings(
            jax.eval_shape(
                lambda key: editor_step.initial_editor_state(
                    config, editor_step.initial_editor_params(config, key)
                ),
                jax.random.key(0),
            ),
            whole,
        ),
        begin=begin,
        step=compiled,
        evaluate=_make_editor_evaluation(config, tokenizer, tables),
        finish=finish,
    )


def _make_editor_evaluation(config, tokenizer, tables):
    """`evaluate(state)`: how often the masked words of validation are named right."""
    vocabulary = tokenizer.vocabulary
    accuracy = jax.jit(
        editor_step.make_masked_accuracy(
            config, pad_id=vocabulary.pad_id, mask_id=vocabulary.mask_id
        )
    )
    sources = [open_source(source) for source in config.data.validation]
    size = config.evaluation.batch_size

    def evaluate(state) -> dict:
        params = on_one_device(state.params)
        metrics = {}
        for source in sources:
            texts = [text for i in range(len(source)) for text in source.captions(i)]
            tokens = tokenizer.encode(texts, config.data.text_length)
            # Whole chunks alone, for one program; rows of padding have no word to mask.
            padding = np.full_like(tokens[:1], vocabulary.pad_id)
            tokens = np.concatenate([tokens, padding.repeat(-len(tokens) % size, 0)])
            hits = masked = 0
            for start in range(0, len(tokens), size):
                key = jax.random.fold_in(jax.random.key(config.seed), start)
                counts = accuracy(
                    FrozenEditor(params, tables), tokens[start : start + size], key
                )
                hits, masked = hits + int(counts[0]), masked + int(counts[1])
            metrics[source.name] = {"masked_top1": hits / max(masked, 1)}
        return metrics

    return evaluate
