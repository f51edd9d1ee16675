"""A trained model that people call: `vilem_jax.load("RUN")`.

model = vilem_jax.load("RUN")
model.encode_image(["a.jpg", pil_image, array])    # [3, E], unit rows
model.encode_text(["a dog on grass"])              # [1, E], unit rows
model.proofread("photo.jpg", "a red dog on a sofa")
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from PIL import Image

from vilem_jax.config.schema import Config
from vilem_jax.data.images import ImageError, decode, from_pillow, resize_square
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.errors import UserError
from vilem_jax.evaluation.encoding import Branch, Encoder, make_encoder, read_ahead
from vilem_jax.evaluation.mixed_towers import mixed_encoder
from vilem_jax.files import MAX_IMAGE_BYTES, read_input
from vilem_jax.models.attention_kernel import resolve_here, with_attention
from vilem_jax.runs.trained_model import read_stored
from vilem_jax.weights.model_folder import without_origins

ImageInput = str | Path | Image.Image | np.ndarray
NUM_CORRECTIONS = 3
P_WRONG = 0.5  # above it a word is called wrong


@dataclasses.dataclass(frozen=True)
class Word:
    """The result of proofreading for one word of a caption."""

    word: str
    p_wrong: float  # 0..1, the largest over its pieces; 0 if it is not judged
    corrections: tuple[tuple[str, float], ...]  # whole words and p, the best first

    @property
    def is_wrong(self) -> bool:
        return self.p_wrong > P_WRONG


def corrected_caption(words: Iterable[Word]) -> str:
    """The caption again, with the best correction for each word that is wrong."""
    rather = (
        word.corrections[0][0] if word.is_wrong and word.corrections else word.word
        for word in words
    )
    # The tokenizer splits at punctuation: most of it has no space before it, and
    # hyphens and apostrophes none after it.
    text = re.sub(r" ([.,;:!?%)\]])", r"\1", " ".join(rather))
    return re.sub(r"([(\[]) | ?([-'/]) ?", r"\1\2", text)


# `repr=False`: the weights of a model are thousands of lines.
@dataclasses.dataclass(frozen=True, repr=False)
class Model:
    """Trained towers and heads, ready to use. Made by `load`."""

    encoder: Encoder
    weights: str  # "online", "momentum" or "mixed"

    def __repr__(self) -> str:
        vision, text = self.config.model.vision, self.config.model.text
        sizes = (value.size for value in jax.tree.leaves(self.encoder.params))
        trained = (
            f"{branch} ({' and '.join(tasks)})"
            for branch, tasks in self.encoder.trained.items()
        )
        return (
            f"vilem_jax.Model, {self.weights} weights: {sum(sizes) / 1e6:.1f} M "
            f"parameters, embeddings of {self.embedding_width}\n"
            f"  ViT {vision.num_layers} x {vision.width}, {vision.image_size} pixels; "
            f"BERT {text.num_layers} x {text.width}, {self.encoder.text_length} tokens "
            f"of {text.vocab_size:,}\n"
            f"  proofreads: {', '.join(trained) or 'not trained'}"
        )

    @property
    def config(self) -> Config:
        return self.encoder.config

    @property
    def tokenizer(self) -> Tokenizer:
        return self.encoder.tokenizer

    def encode_image(self, images: Iterable[ImageInput] | ImageInput) -> np.ndarray:
        """Images -> float32 [N, E], unit rows, in the order given.

        Args:
          images: paths, Pillow images or uint8 arrays [H, W, 3]; any number, read as
            they are needed; or one alone.

        Raises:
          UserError: an image that cannot be read, by name; none at all.
        """
        if isinstance(images, str | Path | Image.Image) or (
            isinstance(images, np.ndarray) and images.ndim < 4
        ):
            images = [images]
        return self.encoder.encode_pixels(read_ahead(self.read_image, images))

    def encode_text(self, captions: Iterable[str] | str) -> np.ndarray:
        """Captions -> float32 [N, E], unit rows; longer ones are cut.

        The length is the evaluation's, `config.evaluation.text_length` tokens.
        """
        captions = [captions] if isinstance(captions, str) else list(captions)
        return self.encoder.encode_captions(captions)

    def knows_a_word(self, caption: str) -> bool:
        """Whether a word of it is in the vocabulary."""
        tokens = self.encoder.tokenize([caption])
        return bool(self.tokenizer.vocabulary.is_editable[tokens].any())

    def proofread(
        self,
        image: ImageInput,
        caption: str,
        *,
        branch: Branch = "local",
        all_corrections: bool = False,
    ) -> list[Word]:
        """Which words of the caption does the image contradict, and what is right?

        Args:
          branch: "local" looks at the patches of several ViT levels, "global" at the
            image's one feature.
          all_corrections: also for words that it does not call wrong.

        Returns:
          one `Word` for each word that fits the text length. [UNK] and punctuation are
          not judged. A correction is a whole word of the vocabulary, in place of the
          whole word, also of one that has several pieces. A branch that was not
          trained to correct gives none. `corrected_caption` joins the words again.

        Raises:
          UserError: an image that cannot be read, a caption without a word, a branch
            that was not trained to find wrong words.
        """
        if not self.knows_a_word(caption):
            raise UserError(f"the caption {caption!r} has no word to proofread")
        tokens = self.encoder.tokenize([caption])
        return self.proofread_tokens(
            [image], tokens, branch=branch, all_corrections=all_corrections
        )[0]

    def proofread_tokens(
        self,
        images: Iterable[ImageInput],
        tokens: np.ndarray,
        *,
        branch: Branch = "local",
        all_corrections: bool = False,
    ) -> list[list[Word]]:
        """`proofread` of captions that are tokens already: int32 [N, L], N images."""
        if self.encoder.trained.get(branch) == ("correct",):
            raise UserError(
                f"the {branch} branch of this model was trained to correct words, not "
                f"to find wrong ones: config.loss.{branch}_detect was False"
            )
        everywhere = np.arange(tokens.shape[1], dtype=np.int32)
        judged = self.encoder.proofread(
            read_ahead(self.read_image, images),
            tokens,
            np.broadcast_to(everywhere, tokens.shape),
            tokens,
            branches=(branch,),
        )[branch]
        # Above this probability of being wrong a word is corrected.
        limit = -1.0 if all_corrections else P_WRONG
        if "correct" not in self.encoder.trained[branch]:
            limit = 1.0
        rows = zip(tokens, judged.p_wrong, judged.best, judged.p_best, strict=True)
        return [self._words(*row, limit) for row in rows]

    def read_image(self, image: ImageInput) -> np.ndarray:
        """An image squashed to the model's square: uint8 [R, R, 3]."""
        name = str(image) if isinstance(image, str | Path) else "an image"
        try:
            if isinstance(image, str | Path):
                file = Path(image).expanduser()
                pixels = decode(read_input(file, MAX_IMAGE_BYTES))
            elif isinstance(image, Image.Image):
                pixels = from_pillow(image)
            else:
                pixels = decode(np.asarray(image))
        except (OSError, ImageError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot read {name}: {reason}") from error
        return resize_square(pixels, self.encoder.image_size)

    @property
    def embedding_width(self) -> int:
        """E of `encode_image` and `encode_text`."""
        width = self.config.model.embedding_width
        return 2 * width if self.weights == "mixed" else width

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of all that decides an embedding: weights, vocabulary, sizes."""
        digest = hashlib.sha256()
        for path, value in jax.tree.leaves_with_path(self.encoder.params):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(value).data)
        model = without_origins(self.config.model)  # an export has none
        shape = (model, self.config.augment.mean, self.config.augment.std)
        data = self.config.data
        text = (self.config.evaluation.text_length, data.cleaning, data.keeps_sep)
        digest.update(repr((shape, text, self.tokenizer.pieces)).encode())
        return digest.hexdigest()

    def _words(self, row, p_wrong, best, p_best, limit) -> list[Word]:
        """The words of one caption; row int32 [L], best int32 [L, 4]."""
        is_judged = self.tokenizer.vocabulary.is_editable[row]
        p_wrong = np.where(is_judged, p_wrong, 0.0)
        words = []
        for word, start, stop in self.tokenizer.words(row):
            p, corrections = float(p_wrong[start:stop].max()), ()
            if is_judged[start] and p > limit:
                # What stands at the first piece of a word is a whole word, or begins
                # one; the other pieces would be glued to it.
                corrections = self._corrections(row[start], best[start], p_best[start])
            words.append(Word(word, p, corrections))
        return words

    def _corrections(self, token, best, p_best) -> tuple[tuple[str, float], ...]:
        """Whole words other than `token`, the best first."""
        pieces, is_piece = self.tokenizer.pieces, self.tokenizer.vocabulary.is_piece
        found = (
            (pieces[other], float(probability))
            for other, probability in zip(best, p_best, strict=True)
            if other != token and probability and not is_piece[other]
        )
        return tuple(found)[:NUM_CORRECTIONS]


def load(
    path: str | Path,
    weights: Literal["online", "momentum", "mixed"] = "online",
    *,
    batch_size: int | None = None,
    step: Literal["last", "best"] = "last",
) -> Model:
    """The model of a run, or an exported one.

    Args:
      path: a run's work directory, a folder that `vilem weights export` wrote, or the
        name of such a folder on the Hugging Face hub, "someone/model".
      weights: "online", the trained weights; "momentum", their moving average; "mixed",
        each tower scored against the moving average of the other (embeddings then have
        twice the width; proofreading uses the online weights).
      step: "last", of the newest checkpoint, or "best", of the best validation, if the
        run keeps it (`config.checkpoint.keep_best`).
      batch_size: rows that a device takes at a time; None takes the run's.

    Raises:
      UserError: `path` is neither a run nor a model; the run is an editor's or has no
        finished checkpoint, or not these weights; a file is corrupt or of another
        shape.
    """
    if weights not in ("online", "momentum", "mixed"):
        raise UserError(
            f"weights must be 'online', 'momentum' or 'mixed', not {weights!r}"
        )
    stored = read_stored(path, "online" if weights == "mixed" else weights, step=step)
    encoder = make_encoder(
        _for_this_machine(stored.config),
        jax.device_put(stored.params),
        stored.tokenizer,
        batch_size=batch_size,
    )
    if weights == "mixed":
        momentum = read_stored(path, "momentum", step=step).params
        encoder = mixed_encoder(encoder, momentum)
    return Model(encoder, weights)


def _for_this_machine(config: Config) -> Config:
    """With its attention kernel; on a CPU in float32, faster there than bfloat16."""
    dtype = "float32" if jax.default_backend() == "cpu" else config.compute.dtype
    config = dataclasses.replace(
        config, compute=dataclasses.replace(config.compute, dtype=dtype)
    )
    return resolve_here(with_attention(config, "auto"))
