"""A model in use: the trained towers as functions of any number of rows.

Rows go through the device in chunks of one size, the last one padded, so that no number
of images or captions causes a recompilation; a single row has a program of its own.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vilem_jax.config.schema import Config
from vilem_jax.data.images import ImageError, decode, resize_square
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.distributed import processes
from vilem_jax.errors import UserError
from vilem_jax.evaluation.timing import Stopwatch, measure
from vilem_jax.masking import NEG_INF
from vilem_jax.models.text import make_attention_mask
from vilem_jax.models.vilem import Params, model_graph
from vilem_jax.models.vision import normalize
from vilem_jax.progress import track

Array = Any  # NumPy on the host, JAX on the device
Branch = Literal["local", "global"]
BRANCHES: tuple[Branch, ...] = ("local", "global")
NUM_BEST = 4  # three corrections, and one more if the token itself is among them
NUM_READERS = 4  # threads that read and decode; Pillow releases the GIL
_STAGE = {"images": "encode_images", "frames": "encode_images", "texts": "encode_texts"}


class Images(Protocol):
    """Images that are read one by one. Every `Source` is this."""

    @property
    def name(self) -> str: ...

    def image_name(self, index: Any, /) -> str:
        """Names one image in messages."""
        ...

    def read_image(self, index: Any, /) -> bytes | np.ndarray:
        """The bytes of an image file, or uint8 [H, W, 3]; OSError if unreadable."""
        ...


class Proofreading(NamedTuple):
    """One branch's judgement of N captions, each beside an image."""

    p_wrong: Array  # [N, L], probability that a token is not the original
    rank: Array  # int32 [N, K], of the label among all tokens; ties count against it
    best: Array  # int32 [N, K, 4], the most probable tokens at the positions
    p_best: Array  # [N, K, 4], their probabilities


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Trained parameters, their tokenizer, and the compiled programs that use them.

    `dataclasses.replace(encoder, params=...)` keeps what is compiled. All methods work
    in this process alone; `share_rows` splits the rows of one of them over several.
    """

    config: Config  # of the run that trained it
    params: Params
    tokenizer: Tokenizer
    text_length: int  # L, tokens of a caption; longer captions are cut
    batch_size: int  # rows of a chunk
    programs: dict[str, Callable]
    parts: int = 1  # an embedding is that many of equal length side by side
    clock: Stopwatch | None = None
    show_progress: bool = False  # on stderr, while images are read
    # Programs and shapes that have run: a clock must not count their compilation.
    warm: set = dataclasses.field(default_factory=set)

    @property
    def image_size(self) -> int:
        """R, in pixels."""
        return self.config.model.vision.image_size

    @property
    def trained(self) -> dict[str, tuple[str, ...]]:
        """The tasks that each branch was trained for, see `LossConfig.trained`."""
        return self.config.loss.trained

    @property
    def protocol(self) -> dict[str, Any]:
        """How captions and images are prepared."""
        return {
            "text_length": self.text_length,
            "cleaning": self.tokenizer.cleaning,
            "keeps_sep": self.tokenizer.keeps_sep,
            "image_size": self.image_size,
        }

    def timed(self) -> "Encoder":
        """The same encoder with a new clock; what is compiled is kept."""
        return dataclasses.replace(self, clock=Stopwatch())

    def encode_images(self, images: Images, indices: Sequence[Any]) -> np.ndarray:
        """Images of a data set -> float32 [N, E], unit rows; see `read_images`."""
        return self.encode_pixels(self.read_images(images, indices))

    def read_images(
        self, images: Images, indices: Sequence[Any]
    ) -> Iterator[np.ndarray]:
        """Images of a data set, squashed to uint8 [R, R, 3], read ahead.

        Raises:
          UserError: an image that is missing or corrupt, by name: an evaluation that
            left it out would not be the benchmark's.
        """

        def read(index: Any) -> np.ndarray:
            try:
                return resize_square(decode(images.read_image(index)), self.image_size)
            except (OSError, ImageError) as error:
                raise UserError(
                    f"image {images.image_name(index)} of {images.name} cannot be read "
                    f"({error}): fix it, or leave it out of the data"
                ) from error

        return read_ahead(read, self.progress(indices, "image"))

    def progress(self, items: Sequence, unit: str) -> Iterable:
        """`items`, counted on stderr if progress is shown, see `track`."""
        return track(items, f"reading {unit}s", unit) if self.show_progress else items

    def encode_captions(self, captions: Sequence[str]) -> np.ndarray:
        """Captions -> float32 [N, E], unit rows; cut to `text_length` tokens."""
        return self.encode_tokens(self.tokenize(captions))

    def tokenize(self, captions: Sequence[str]) -> np.ndarray:
        """Captions -> int32 [N, L]."""
        with measure(self.clock, "tokenize"):
            return self.tokenizer.encode(captions, self.text_length)

    def encode_pixels(self, pixels: Iterable[np.ndarray]) -> np.ndarray:
        """Images uint8 [R, R, 3], one after another -> float32 [N, E], unit rows."""
        return self._encode("images", self._read(pixels), "image")

    def project_frames(self, pixels: Iterable[np.ndarray]) -> np.ndarray:
        """As `encode_pixels`, before rows get unit length: float32 [N, E]."""
        return self._encode("frames", self._read(pixels), "frame")

    def encode_tokens(self, tokens: np.ndarray) -> np.ndarray:
        """int32 [N, L] -> float32 [N, E], unit rows."""
        self._check_length(tokens)
        return self._encode("texts", _chunks(tokens, self.batch_size), "caption")

    def proofread(
        self,
        pixels: Iterable[np.ndarray],
        tokens: np.ndarray,
        positions: np.ndarray,
        labels: np.ndarray,
        *,
        branches: Sequence[str] | None = None,
    ) -> dict[str, Proofreading]:
        """Judges every token, and corrects those at the positions.

        Args:
          pixels: N images uint8 [R, R, 3], one beside each caption.
          tokens: int32 [N, L], captions that may be wrong.
          positions: int32 [N, K], for which the most probable tokens are returned.
          labels: int32 [N, K], the tokens whose rank is returned.
          branches: "local", "global", or both, which then share the image tower; None
            takes the trained ones.

        Raises:
          UserError: the branch does not exist or was not trained; there is no caption;
            captions are longer than the text tower has positions.
        """
        branches = tuple(self.trained) if branches is None else branches
        program = "+".join(branches)
        if branches and program not in self.programs:
            raise UserError(f"branch is 'local' or 'global', not {program!r}")
        self.check_trained(branches)
        self._check_length(tokens)
        parts, count = [], 0
        for chunk in self._read(pixels):
            rows = slice(count, count + len(chunk))
            count += len(chunk)
            if count > len(tokens):
                break
            texts = (tokens[rows], positions[rows], labels[rows])
            parts.append(self._run(program, np.stack(chunk), *texts))
        if count != len(tokens):
            raise ValueError(f"{len(tokens)} captions need as many images, not {count}")
        if not parts:
            raise UserError("there is no caption to proofread")
        found = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
        return {branch: found[branch] for branch in branches}  # JAX sorts dicts

    def check_trained(self, branches: Sequence[str] = ()) -> None:
        """Raises UserError if the run has not trained proofreading, or a branch."""
        if not self.trained:
            raise UserError(
                "this model was trained without ViLEM's losses (the four switches of "
                "config.loss) and cannot proofread"
            )
        for branch in branches:
            if branch not in self.trained:
                raise UserError(
                    f"the {branch} branch of this model was not trained: "
                    f"config.loss.{branch}_detect and {branch}_correct were False; use "
                    f"branch={next(iter(self.trained))}"
                )

    def _check_length(self, tokens: np.ndarray) -> None:
        limit = self.config.model.text.max_positions
        if tokens.shape[1] > limit:
            raise UserError(
                f"captions of {tokens.shape[1]} tokens are longer than the text tower, "
                f"which has {limit} positions"
            )

    def _encode(
        self, program: str, chunks: Iterable[list[np.ndarray]], name: str
    ) -> np.ndarray:
        rows = [self._run(program, np.stack(chunk)) for chunk in chunks]
        if not rows:
            raise UserError(f"there is no {name} to encode")
        return np.concatenate(rows)

    def _run(self, program: str, *rows: np.ndarray) -> Any:
        """One chunk of at most `batch_size` rows, padded with its last row."""
        count = len(rows[0])
        padding = (1 if count == 1 else self.batch_size) - count
        padded = [np.concatenate([r, np.repeat(r[-1:], padding, 0)]) for r in rows]
        shape = (program, *(part.shape for part in padded))
        if self.clock and shape not in self.warm:
            with measure(self.clock, "warm_up"):
                jax.block_until_ready(self.programs[program](self.params, *padded))
        self.warm.add(shape)
        with measure(self.clock, _STAGE.get(program, "proofread")):
            outputs = self.programs[program](self.params, *padded)
            return jax.tree.map(lambda array: np.asarray(array)[:count], outputs)

    def _read(self, pixels: Iterable[np.ndarray]) -> Iterator[list]:
        """Chunks of `pixels`, timing the wait for them."""
        chunks = _chunks(pixels, self.batch_size)
        while True:
            with measure(self.clock, "read_images"):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk


def make_encoder(
    config: Config,
    params: Params,
    tokenizer: Tokenizer,
    *,
    batch_size: int | None = None,
) -> Encoder:
    """An `Encoder` of the model of `config` with `params`.

    Args:
      batch_size: rows of a chunk; None takes `config.evaluation.batch_size`.
    """
    graph = model_graph(config.model, config.compute)
    vocabulary = tokenizer.vocabulary
    pad_id, is_editable = vocabulary.pad_id, jnp.asarray(vocabulary.is_editable)
    is_piece = jnp.asarray(vocabulary.is_piece)

    def images(model, pixels):
        return model.encode_image(normalize(pixels, config.augment))

    def frames(model, pixels):
        return model.map_image(normalize(pixels, config.augment))

    def texts(model, tokens):
        return model.encode_text(tokens, make_attention_mask(tokens, pad_id))

    def proofread(model, pixels, tokens, positions, labels, *, branches):
        features = model.image_features(normalize(pixels, config.augment))
        attention_mask = make_attention_mask(tokens, pad_id)
        # A word is corrected by words, a ## piece by pieces.
        was_piece = is_piece[jnp.take_along_axis(tokens, positions, axis=1)]
        is_like = is_piece[None, None, :] == was_piece[..., None]
        may_stand = is_like & is_editable[None, None, :]  # [B, K, V]
        found = {}
        for branch in branches:
            if branch == "local":
                hidden = model.proofread_local(tokens, attention_mask, features.levels)
                logits = model.local_logits(hidden, positions)
            else:
                feature = model.image_global(features)
                hidden = model.proofread_global(tokens, attention_mask, feature)
                logits = model.global_logits(hidden, positions)
            found[branch] = _judgement(logits.detect, logits.correct, labels, may_stand)
        return found

    programs = {"images": images, "frames": frames, "texts": texts}
    for branches in (("local",), ("global",), BRANCHES):
        programs["+".join(branches)] = functools.partial(proofread, branches=branches)

    def compiled(name: str, program: Callable) -> Callable:
        def run(params, *rows):
            return program(nnx.merge(graph, params), *rows)

        run.__name__ = name  # in profiles
        return jax.jit(run)

    return Encoder(
        config=config,
        params=params,
        tokenizer=tokenizer,
        text_length=config.evaluation.text_length,
        batch_size=batch_size or config.evaluation.batch_size,
        programs={name: compiled(name, program) for name, program in programs.items()},
    )


def share_rows(
    encode: Callable[[list], np.ndarray], items: Sequence[Any]
) -> np.ndarray:
    """`encode(items)`: each process encodes a part of them, and all get all rows.

    All processes must call it.

    Raises:
      UserError: that of `encode`, on all processes.
    """
    here = [items[row] for row in processes.local_items(len(items))]
    rows = processes.raise_on_all(lambda: encode(here), UserError)
    return processes.all_gather_rows(rows, len(items))


def read_ahead(read: Callable, items: Iterable) -> Iterator:
    """`map(read, items)` by threads, in order, a few items ahead."""
    with ThreadPoolExecutor(NUM_READERS) as pool:
        waiting = collections.deque()
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > 4 * NUM_READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _judgement(
    detect: jax.Array, correct: jax.Array, labels: jax.Array, may_stand: jax.Array
) -> Proofreading:
    """`Proofreading` on the device; detect [B, L, 2], correct, may_stand [B, K, V]."""
    p_wrong = jax.nn.softmax(detect, axis=-1)[..., 0]
    score = jnp.take_along_axis(correct, labels[..., None], axis=-1)
    rank = jnp.sum(correct >= score, axis=-1).astype(jnp.int32)
    total = jax.nn.logsumexp(correct, axis=-1, keepdims=True)
    num_best = min(NUM_BEST, correct.shape[-1])
    best_logits, best = jax.lax.top_k(jnp.where(may_stand, correct, NEG_INF), num_best)
    return Proofreading(p_wrong, rank, best, jnp.exp(best_logits - total))


def _chunks(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while chunk := list(itertools.islice(items, size)):
        yield chunk
