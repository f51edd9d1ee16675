"""The hard test of `scenes`: a true caption against one that is nearly the same.

The wrong caption differs by one word, or by two words that are exchanged:

    object     another shape                      circle -> heart
    attribute  another colour, size or texture    red -> blue
    relation   the opposite side                  left -> right, above -> below
    count      another number                     two -> three
    swap       two words of the same class        red circle .. blue star ->
                                                  blue circle .. red star
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING, Literal, get_args

from vilem_jax.data.scenes import grammar
from vilem_jax.data.scenes.grammar import Meaning, holds, look, read
from vilem_jax.data.scenes.layout import COLOURS, SHAPES, SIZES, SPLIT_CODES, Rng, Scene

if TYPE_CHECKING:
    from vilem_jax.data.scenes.source import ScenesSource

Kind = Literal["object", "attribute", "relation", "count", "swap"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def _each_other(words: Sequence[str]) -> dict[str, Sequence[str]]:
    return dict.fromkeys(words, words)


_NOUNS = (_each_other(SHAPES), _each_other(tuple(grammar.PLURALS.values())))
_ADJECTIVES = tuple(map(_each_other, (COLOURS, SIZES, grammar.SPOKEN_TEXTURES)))
# word -> words that may replace it, for each class of words.
_REPLACEMENTS: dict[Kind, tuple[Mapping[str, Sequence[str]], ...]] = {
    "object": _NOUNS,
    "attribute": _ADJECTIVES,
    "relation": (_each_other(("left", "right")) | _each_other(("above", "below")),),
    "count": (_each_other(tuple(grammar.NUMBERS)),),
}
_PAIRS_STREAM = 16  # part of the random seed; the splits use seeds without it


@dataclass(frozen=True)
class HardPair:
    """A caption that is true of an image and one that is false of it.

    Attributes:
        image: index of the image in its split.
        kind: the difference of the two captions.
    """

    image: int
    caption: str
    wrong_caption: str
    kind: Kind


def hard_pairs(source: "ScenesSource") -> tuple[HardPair, ...]:
    """At most one pair of each kind for each caption, ordered by kind, then image.

    With one caption per image, the standard error of the difference of two models would
    be about one point, as large as the differences to measure.

    A model that ignores the image should score 50 %: replacement words are uniform,
    wrong captions obey the rules of true ones, and each exchange of numbers is as
    frequent as its reverse (so there are fewer pairs of the kind "count").
    """
    rng = Rng(source.seed, SPLIT_CODES[source.split], _PAIRS_STREAM)
    found: dict[Kind, list[HardPair]] = {kind: [] for kind in KINDS}
    for image in range(len(source)):
        scene = source.scene(image)
        for caption, kind in product(source.captions(image), KINDS):
            wrong = _false_variant(kind, scene, caption, rng)
            if wrong is not None:
                found[kind].append(HardPair(image, caption, wrong, kind))
    found["count"] = _balanced(found["count"])
    return tuple(pair for kind in KINDS for pair in found[kind])


def _false_variant(kind: Kind, scene: Scene, caption: str, rng: Rng) -> str | None:
    """A caption with one difference of this kind, or None if none is possible."""
    words = caption.split()
    variants = _swaps(words) if kind == "swap" else _replacements(kind, words)
    for variant in rng.shuffled(variants):
        wrong = " ".join(variant)
        meaning = read(wrong)
        if meaning and _is_plausible(meaning) and not holds(meaning, scene):
            return wrong
    return None


def _is_plausible(meaning: Meaning) -> bool:
    """Whether a caption could be true of some image, so its words reveal nothing."""
    counts = [phrase.count for phrase in meaning.phrases]
    pairs = combinations(map(look, meaning.phrases), 2)
    return (
        # As any two objects of a scene, they share at most one word of their looks.
        all(sum(x == y for x, y in zip(a, b, strict=True)) <= 1 for a, b in pairs)
        and sum(counts) <= (meaning.total or 4)
        and all(
            _may_relate(counts[first], relation, counts[second])
            for first, relation, second in meaning.relations
        )
    )


def _may_relate(first: int, relation: str, second: int) -> bool:
    """Whether groups of these sizes are ever in a relation."""
    if relation in ("around", "amid"):
        few, many = sorted((first, second))
        return few == 1 < many and (relation == "around") == (first == many)
    return max(first, second) <= 2  # three of four cells are never on one side


def _replacements(kind: Kind, words: list[str]) -> list[list[str]]:
    """Variants with one word replaced; each class of words has about equal weight.

    Otherwise most pairs would be about colours, because there are most of them.
    """
    by_class = [
        [
            [*words[:index], other, *words[index + 1 :]]
            for index, word in enumerate(words)
            for other in others_of.get(word, ())
            if other != word
        ]
        for others_of in _REPLACEMENTS[kind]
    ]
    most = max(map(len, by_class))
    return [v for vs in by_class if vs for v in vs * max(1, most // len(vs))]


def _swaps(words: list[str]) -> list[list[str]]:
    """Variants with two different words of one class exchanged."""
    variants = []
    for i, j in combinations(range(len(words)), 2):
        pair = {words[i], words[j]}
        if len(pair) == 2 and any(pair <= set(c) for c in _NOUNS + _ADJECTIVES):
            swapped = list(words)
            swapped[i], swapped[j] = words[j], words[i]
            variants.append(swapped)
    return variants


def _balanced(pairs: list[HardPair]) -> list[HardPair]:
    """As many pairs "two" -> "three" as "three" -> "two", in similar captions."""
    exchanges = [(_numbers(p.caption), _numbers(p.wrong_caption)) for p in pairs]
    total, taken, kept = Counter(exchanges), Counter(), []
    for pair, (true, wrong) in zip(pairs, exchanges, strict=True):
        if taken[true, wrong] < total[wrong, true]:
            taken[true, wrong] += 1
            kept.append(pair)
    return kept


def _numbers(caption: str) -> tuple[int | None, tuple[int, ...]]:
    """The total that a caption states, and the sorted counts of its phrases."""
    meaning = read(caption)
    assert meaning is not None
    return meaning.total, tuple(sorted(phrase.count for phrase in meaning.phrases))
