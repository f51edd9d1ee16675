"""The hard test of `scenes`: a true caption against one that is nearly the same.

The wrong caption differs by one word, or by two words that changed places:

    object     another shape                      circle -> heart
    attribute  another colour, size or texture    red -> blue
    relation   the opposite side                  left -> right, above -> below
    count      another number                     two -> three
    swap       two words of one sort exchanged    red circle .. blue star ->
                                                  blue circle .. red star
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING, Literal

from vilem_jax.data.scenes.grammar import (
    NUMBERS,
    PLURALS,
    SPOKEN_TEXTURES,
    Meaning,
    Phrase,
    holds,
    read,
)
from vilem_jax.data.scenes.layout import (
    COLOURS,
    SHAPES,
    SIZES,
    SPLIT_CODES,
    Draws,
    Scene,
)

if TYPE_CHECKING:
    from vilem_jax.data.scenes.source import ScenesSource

KINDS = ("object", "attribute", "relation", "count", "swap")

_SHAPE_SORTS = (SHAPES, tuple(PLURALS.values()))
_ATTRIBUTE_SORTS = (COLOURS, SIZES, SPOKEN_TEXTURES)
_OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}
_PAIRS_STREAM = 16  # apart from the streams that made the splits


@dataclass(frozen=True)
class HardPair:
    """A caption true of an image and one that is false of it.

    Attributes:
        image: index of the image in its split.
        kind: what the two differ in.
    """

    image: int
    caption: str
    wrong_caption: str
    kind: Literal["object", "attribute", "relation", "count", "swap"]


def hard_pairs(source: "ScenesSource") -> tuple[HardPair, ...]:
    """At most one pair of each kind for each caption, ordered by kind, then image.

    With one an image, the difference of two models would have a standard error of a
    point, as large as what it is to show.

    A model that does not look should score 50 %: what replaces a word is drawn
    evenly, wrong captions keep the rules that true ones obey, and an exchange of
    numbers occurs as often as its reverse (which is why counts have fewer pairs).
    """
    draws = Draws(source.seed, SPLIT_CODES[source.split], _PAIRS_STREAM)
    found: dict[str, list[HardPair]] = {kind: [] for kind in KINDS}
    for image in range(len(source)):
        scene = source.scene(image)
        for caption, kind in product(source.captions(image), KINDS):
            wrong = _false_variant(kind, scene, caption, draws)
            if wrong is not None:
                found[kind].append(HardPair(image, caption, wrong, kind))
    found["count"] = _balanced(found["count"])
    return tuple(pair for kind in KINDS for pair in found[kind])


def _false_variant(kind: str, scene: Scene, caption: str, draws: Draws) -> str | None:
    """The caption with something of this kind changed, or None if nothing can be."""
    for words in draws.shuffled(_VARIANTS[kind](caption.split())):
        wrong = " ".join(words)
        meaning = read(wrong)
        if _is_plausible(meaning) and not holds(meaning, scene):
            return wrong
    return None


def _is_plausible(meaning: Meaning | None) -> bool:
    """Whether a caption is one that some image could have been given.

    What only the image decides may differ, not what the sentence gives away.
    """
    if meaning is None:
        return False
    counts = [phrase.count for phrase in meaning.phrases]
    return (
        all(_differ_enough(a, b) for a, b in combinations(meaning.phrases, 2))
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
    return max(first, second) <= 2  # three on a grid of four are never on one side


def _differ_enough(one: Phrase, other: Phrase) -> bool:
    """Whether two phrases could stand in one caption: as objects of a scene differ."""
    same = (
        one.size == other.size,
        one.colour == other.colour,
        one.shape == other.shape,
    )
    return sum(same) <= 1


def _replaced(words: list[str], choices_of) -> Iterator[list[str]]:
    """Every way of putting one of `choices_of(place)` in the place of one word."""
    for place, word in enumerate(words):
        for other in choices_of(place):
            if other != word:
                yield [*words[:place], other, *words[place + 1 :]]


def _replaced_by_sort(words: list[str], sorts) -> list[list[str]]:
    """Variants with another word of the same sort; each sort has equal weight.

    Evenly over sorts, or colours, of which there are most, would be most pairs.
    """
    by_sort = [
        list(_replaced(words, lambda i, s=sort: s if words[i] in s else ()))
        for sort in sorts
    ]
    most = max(map(len, by_sort))
    return [v for vs in by_sort if vs for v in vs * max(1, most // len(vs))]


def _object_variants(words: list[str]) -> list[list[str]]:
    return _replaced_by_sort(words, _SHAPE_SORTS)


def _attribute_variants(words: list[str]) -> list[list[str]]:
    return _replaced_by_sort(words, _ATTRIBUTE_SORTS)


def _relation_variants(words: list[str]) -> list[list[str]]:
    def opposite(place: int) -> tuple[str, ...]:
        return (_OPPOSITES[words[place]],) if words[place] in _OPPOSITES else ()

    return list(_replaced(words, opposite))


def _count_variants(words: list[str]) -> list[list[str]]:
    def numbers(place: int) -> tuple[str, ...]:
        return tuple(NUMBERS) if words[place] in NUMBERS else ()

    return list(_replaced(words, numbers))


def _swap_variants(words: list[str]) -> list[list[str]]:
    variants = []
    for i, j in combinations(range(len(words)), 2):
        sorts = _SHAPE_SORTS + _ATTRIBUTE_SORTS
        if words[i] != words[j] and any({words[i], words[j]} <= set(s) for s in sorts):
            swapped = list(words)
            swapped[i], swapped[j] = words[j], words[i]
            variants.append(swapped)
    return variants


_VARIANTS = {
    "object": _object_variants,
    "attribute": _attribute_variants,
    "relation": _relation_variants,
    "count": _count_variants,
    "swap": _swap_variants,
}


def _balanced(pairs: list[HardPair]) -> list[HardPair]:
    """As many "two" made "three" as "three" made "two", in like sentences."""
    exchanges = [(_numbers(p.caption), _numbers(p.wrong_caption)) for p in pairs]
    total, taken, kept = Counter(exchanges), Counter(), []
    for pair, exchange in zip(pairs, exchanges, strict=True):
        if taken[exchange] < total[exchange[::-1]]:
            taken[exchange] += 1
            kept.append(pair)
    return kept


def _numbers(caption: str) -> tuple:
    """All that a caption of the grammar says in numbers."""
    meaning = read(caption)
    return meaning.total, tuple(sorted(phrase.count for phrase in meaning.phrases))
