"""What a run trains: a ViLEM, or the editor. Each task gives `run.py` the same parts.

image_size            of the batches; 0: captions alone
frozen                arrays that the step reads and never changes
init_params(key)      random parameters
load_weights(params)  on the host: the arguments of `init_state`, with the pretrained
                      weights that the config names
init_state(...)       the state of step 0
step                  (state, frozen, batch, key) -> (state, metrics)
evaluate(state)       {source: metrics} of validation
test(params)          {source: metrics} of the test split
finish(state)         writes what is due when the last step is done

`init_params`, `init_state` and `step` are pure; `run.py` compiles them and puts their
results on the devices. What a task needs besides the state (the frozen editor, the
validation data) it holds and never changes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np

from vilem_jax.config.schema import Config, SourceConfig
from vilem_jax.data.sources.missing import check_complete
from vilem_jax.data.sources.source import Source, open_source
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.distributed import processes
from vilem_jax.distributed.mesh import Layout, on_one_device
from vilem_jax.editing.editor import FrozenEditor
from vilem_jax.editing.loading import open_editor, token_tables
from vilem_jax.editing.stored_edits import make_edits
from vilem_jax.evaluation.encoding import Encoder, make_encoder
from vilem_jax.evaluation.proofread import evaluate_proofreading
from vilem_jax.evaluation.retrieval import encode_source, evaluate_retrieval
from vilem_jax.models.vilem import Params
from vilem_jax.progress import doing, track
from vilem_jax.runs.origin import TOKENIZER_FOLDER, load_origin
from vilem_jax.runs.workdir import EDITOR_FOLDER
from vilem_jax.training import editor_step, starting
from vilem_jax.training.state import State, TrainState, init_params, init_state
from vilem_jax.training.step import make_train_step
from vilem_jax.weights.formats.huggingface_bert import save_masked_language_model


def make_task(
    config: Config,
    layout: Layout,
    tokenizer: Tokenizer,
    schedule: Callable,
    workdir: Path,
) -> "VilemTask | EditorTask":
    if config.task == "editor":
        return EditorTask(config, tokenizer, schedule, workdir)
    return VilemTask(config, layout, tokenizer, schedule)


class VilemTask:
    """Both towers, trained by contrast and by proofreading."""

    def __init__(
        self, config: Config, layout: Layout, tokenizer: Tokenizer, schedule: Callable
    ):
        self.config, self.tokenizer = config, tokenizer
        self.image_size = config.model.vision.image_size
        # With an edit table, or without ViLEM's losses, no editor runs in the step.
        with doing("loading the editor"):
            graph, self.frozen = open_editor(config, tokenizer)
        self.step = make_train_step(config, schedule, graph, layout=layout)
        self._validation = _open_complete(config.data.validation, "validation")
        self._test = _open_complete(config.data.test, "test")
        # Without an editor, as with an edit table, validation has recalls alone.
        # Made once, so that every evaluation judges the same captions.
        with doing("editing captions of validation, to be proofread"):
            self._edits = [
                make_edits(
                    config,
                    graph,
                    self.frozen,
                    tokenizer,
                    source,
                    seed=config.seed,
                    num_images=config.evaluation.num_proofread_images,
                )
                for source in self._validation
                if graph is not None
            ]
        # Compiled once for all evaluations, which come with parameters of their own.
        encoder = make_encoder(config, {}, tokenizer)
        self._encoder = dataclasses.replace(encoder, show_progress=True)

    def init_params(self, key: jax.Array) -> Params:
        return init_params(self.config, key)

    def load_weights(self, params: Params) -> tuple[Params, Params]:
        if self.config.model.start_from:
            return load_origin(self.config)
        params = starting.pretrained(self.config, params)
        return params, params  # the momentum model starts as a copy

    def init_state(
        self, params: Params, momentum_params: Params | None = None
    ) -> TrainState:
        return init_state(self.config, params, momentum_params)

    def evaluate(self, state: TrainState) -> dict[str, dict]:
        """Recalls, and proofreading with right and shuffled images."""
        encoder = self._encoder_of(on_one_device(state.params))
        metrics = {}
        for number, source in enumerate(self._validation):
            metrics[source.name] = encode_source(encoder, source).metrics()
            if self._edits:
                edits = self._edits[number]
                has_others = len(np.unique(edits.image)) > 1
                metrics[source.name]["proofread"] = evaluate_proofreading(
                    encoder, edits, source, with_shuffled=has_others
                )
        return metrics

    def test(self, params: Params) -> dict[str, dict]:
        """Recalls with their protocol."""
        encoder = self._encoder_of(params)
        return {one.name: evaluate_retrieval(encoder, one) for one in self._test}

    def finish(self, state: TrainState) -> None:
        pass

    def _encoder_of(self, params: Params) -> Encoder:
        return dataclasses.replace(self._encoder, params=params)


class EditorTask:
    """A masked-language model that learns the captions: the editor of later runs."""

    image_size = 0

    def __init__(
        self, config: Config, tokenizer: Tokenizer, schedule: Callable, workdir: Path
    ):
        self.config, self.tokenizer, self.workdir = config, tokenizer, workdir
        self._tables = token_tables(tokenizer)
        self.frozen = editor_step.masking_tables(self._tables)
        self.step = editor_step.make_editor_step(config, schedule)
        self._accuracy = jax.jit(editor_step.make_masked_accuracy(config))
        self._validation = [open_source(one) for one in config.data.validation]

    def init_params(self, key: jax.Array) -> Params:
        return editor_step.init_editor_params(self.config, key)

    def load_weights(self, params: Params) -> tuple[Params]:
        return (starting.pretrained_editor(self.config, params),)

    def init_state(self, params: Params) -> State:
        return editor_step.init_editor_state(self.config, params)

    def evaluate(self, state: State) -> dict[str, dict]:
        """How often the masked tokens of validation are named right."""
        # Evaluation runs on one device of each process, also if the state is sharded.
        params = on_one_device(state.params)
        return {
            source.name: {"masked_top1": self._masked_top1(params, source)}
            for source in self._validation
        }

    def _masked_top1(self, params: Params, source: Source) -> float:
        config, size = self.config, self.config.evaluation.batch_size
        texts = [text for i in range(len(source)) for text in source.captions(i)]
        tokens = self.tokenizer.encode(texts, config.data.text_length)
        # Whole chunks alone, for one program; rows of padding have nothing to mask.
        padding = np.full_like(tokens[:1], self.tokenizer.vocabulary.pad_id)
        tokens = np.concatenate([tokens, padding.repeat(-len(tokens) % size, 0)])
        editor = FrozenEditor(params, self._tables)
        hits = masked = 0
        starts = range(0, len(tokens), size)
        for start in track(starts, "scoring validation", "batch"):
            # The same masks at every evaluation.
            key = jax.random.fold_in(jax.random.key(config.seed), start)
            counts = self._accuracy(editor, tokens[start : start + size], key)
            hits, masked = hits + int(counts[0]), masked + int(counts[1])
        return hits / max(masked, 1)

    def test(self, params: Params) -> dict[str, dict]:
        return {}  # an editor's config has no test split

    def finish(self, state: State) -> None:
        """Writes the editor, in Hugging Face's layout, to `EDITOR_FOLDER`."""
        params = jax.tree.map(np.asarray, state.params)
        folder, tokens = self.workdir / EDITOR_FOLDER, self.workdir / TOKENIZER_FOLDER
        text = self.config.model.text
        save = partial(save_masked_language_model, folder, params, text, tokens)
        processes.on_process_0(save)


def _open_complete(configs: Sequence[SourceConfig], split: str) -> list[Source]:
    """The sources to judge by: what they lack must be reported before the run."""
    sources = [open_source(config) for config in configs]
    for source in sources:
        check_complete(source, f"config.data.{split}.{source.name}")
    return sources
