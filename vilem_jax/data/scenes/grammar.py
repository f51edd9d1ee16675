"""The language of the scenes: saying, reading and checking captions.

    caption  = [against BACKGROUND] [NUMBER shapes with] clause [against BACKGROUND]
    clause   = phrase RELATION phrase [and RELATION phrase]
    phrase   = (a | two | three | four) SIZE [TEXTURE] COLOUR SHAPE[s]
    RELATION = left of | right of | above | below | around | amid

The background is said at most once. The second relation of a clause is one of the
first phrase. A plain object's texture is not said. No two words mean the same, so a
word replaced by another makes a caption false or ungrammatical.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, permutations, product

from vilem_jax.data.scenes.layout import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Draws,
    Scene,
    SceneObject,
    clear_relation,
    relation_holds,
)

CAPTIONS_PER_IMAGE = 5
MAX_WORDS = 16
NUMBERS = {"two": 2, "three": 3, "four": 4}
SPOKEN_TEXTURES = TEXTURES[1:]
_NUMBER_WORDS = {1: "a"} | {number: word for word, number in NUMBERS.items()}
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
_SINGULARS = {plural: shape for shape, plural in PLURALS.items()}


@dataclass(frozen=True)
class Phrase:
    """What a caption says of one object or group; `texture` None is unsaid."""

    count: int
    size: str
    texture: str | None
    colour: str
    shape: str

    def fits(self, thing: SceneObject) -> bool:
        """Whether the words, the count aside, are true of one object."""
        return (
            self.colour == thing.colour
            and self.shape == thing.shape
            and self.size == thing.size
            and self.texture in (None, thing.texture)
        )


@dataclass(frozen=True)
class Meaning:
    """What a caption claims.

    Attributes:
        phrases: the objects and groups named, in order; 2 or 3.
        relations: (index of a phrase, relation, index of another).
        background: None if unsaid.
        total: number of all objects in the image, None if unsaid.
    """

    phrases: tuple[Phrase, ...]
    relations: tuple[tuple[int, str, int], ...]
    background: str | None = None
    total: int | None = None


def holds(meaning: Meaning, scene: Scene) -> bool:
    """Whether a caption is true of a scene.

    The widest reading: "a red circle" needs one or more, striped or not, "two red
    circles" exactly two; a side holds for all members of a group, and of two
    diagonal objects one is both left of and above the other. So a caption that is
    false here is false in any reading.
    """
    if meaning.background not in (None, scene.background):
        return False
    if meaning.total not in (None, len(scene.objects)):
        return False
    candidates = []
    for phrase in meaning.phrases:
        fitting = tuple(i for i, o in enumerate(scene.objects) if phrase.fits(o))
        if phrase.count == 1:
            candidates.append([(i,) for i in fitting])
        else:
            candidates.append([fitting] if len(fitting) == phrase.count else [])
    return any(_agree(meaning, scene, groups) for groups in product(*candidates))


def _agree(meaning: Meaning, scene: Scene, groups: tuple[tuple[int, ...], ...]) -> bool:
    """Whether groups of object indices, one a phrase, differ and are as related."""
    if any(set(a) & set(b) for a, b in combinations(groups, 2)):
        return False
    members = [[scene.objects[i] for i in group] for group in groups]
    return all(
        relation_holds(relation, members[first], members[second])
        for first, relation, second in meaning.relations
    )


def say_phrase(phrase: Phrase) -> list[str]:
    """The words of one phrase."""
    texture = [] if phrase.texture is None else [phrase.texture]
    noun = phrase.shape if phrase.count == 1 else PLURALS[phrase.shape]
    number = _NUMBER_WORDS[phrase.count]
    return [number, phrase.size, *texture, phrase.colour, noun]


def say(meaning: Meaning, *, background_first: bool = False) -> str:
    """The caption of a meaning: lower case, no punctuation."""
    words = say_phrase(meaning.phrases[0])
    for order, (_, relation, other) in enumerate(meaning.relations):
        words += ["and"] if order else []
        words += [relation, "of"] if relation in ("left", "right") else [relation]
        words += say_phrase(meaning.phrases[other])
    if meaning.total is not None:
        words = [_NUMBER_WORDS[meaning.total], "shapes", "with", *words]
    if meaning.background is not None:
        ground = ["against", meaning.background]
        words = ground + words if background_first else words + ground
    return " ".join(words)


class _Reader:
    """Words left to right; every `take` that does not fit raises LookupError."""

    def __init__(self, words: list[str]):
        self.words = words
        self.at = 0

    def sees(self, *words: str) -> bool:
        return tuple(self.words[self.at : self.at + len(words)]) == words

    def take(self, allowed: Iterable[str]) -> str:
        if self.at >= len(self.words) or self.words[self.at] not in allowed:
            raise LookupError
        self.at += 1
        return self.words[self.at - 1]

    def background(self) -> str | None:
        if not self.sees("against"):
            return None
        self.at += 1
        return self.take(BACKGROUNDS)

    def phrase(self) -> Phrase:
        count = NUMBERS.get(self.take(("a", *NUMBERS)), 1)
        size = self.take(SIZES)
        texture = None
        if self.at < len(self.words) and self.words[self.at] in SPOKEN_TEXTURES:
            texture = self.take(SPOKEN_TEXTURES)
        colour = self.take(COLOURS)
        noun = self.take(SHAPES if count == 1 else _SINGULARS)
        return Phrase(count, size, texture, colour, _SINGULARS.get(noun, noun))

    def relation(self) -> str:
        relation = self.take(RELATIONS)
        if relation in ("left", "right"):
            self.take(("of",))
        return relation


def read(caption: str) -> Meaning | None:
    """What a caption claims, or None if it is not a sentence of the grammar."""
    reader = _Reader(caption.split())
    try:
        background = reader.background()
        total = None
        if any(reader.sees(number, "shapes") for number in NUMBERS):
            total = NUMBERS[reader.take(NUMBERS)]
            reader.take(("shapes",))
            reader.take(("with",))
        phrases = [reader.phrase()]
        relations = [(0, reader.relation(), 1)]
        phrases.append(reader.phrase())
        if reader.sees("and"):
            reader.take(("and",))
            relations.append((0, reader.relation(), 2))
            phrases.append(reader.phrase())
        if background is None:
            background = reader.background()
        if reader.at != len(reader.words):
            return None
    except LookupError:
        return None
    return Meaning(tuple(phrases), tuple(relations), background, total)


def is_true(caption: str, scene: Scene) -> bool:
    """Whether a caption is a sentence of the grammar and true of the scene."""
    meaning = read(caption)
    return meaning is not None and holds(meaning, scene)


def describe(scene: Scene, draws: Draws) -> tuple[str, ...] | None:
    """Say a scene in `CAPTIONS_PER_IMAGE` different captions.

    Each names two or three of its objects or groups; together they name all.

    Returns:
        the captions, or None if the scene does not give enough different ones.
    """
    claims = _claims(scene, draws)
    captions: list[str] = []
    for attempt in range(6 * CAPTIONS_PER_IMAGE):
        caption = _decorate(claims[attempt % len(claims)], scene, draws)
        if caption is not None and caption not in captions:
            captions.append(caption)
        if len(captions) == CAPTIONS_PER_IMAGE:
            return tuple(captions)
    return None


def _phrase(group: tuple[SceneObject, ...]) -> Phrase:
    thing = group[0]
    texture = None if thing.texture == "plain" else thing.texture
    return Phrase(len(group), thing.size, texture, thing.colour, thing.shape)


def _claims(scene: Scene, draws: Draws) -> list[Meaning]:
    """Everything a clause may claim of a scene, in an order that names all soon.

    Only relations without doubt are said, never one of two that hold.
    """
    units = scene.units
    pairs, triples = [], []
    for first, second in permutations(units, 2):
        relation = clear_relation(first, second)
        if relation is not None:
            named = (_phrase(first), _phrase(second))
            pairs.append(Meaning(named, ((0, relation, 1),)))
    for hub, second, third in permutations(units, 3):
        ways = clear_relation(hub, second), clear_relation(hub, third)
        if None not in ways and ways[0] != ways[1]:
            named = (_phrase(hub), _phrase(second), _phrase(third))
            triples.append(Meaning(named, ((0, ways[0], 1), (0, ways[1], 2))))
    ordered, missing = [], {_phrase(group) for group in units}
    for claim in draws.shuffled(pairs):
        fresh = missing & set(claim.phrases)
        missing -= fresh
        ordered.insert(0 if fresh else len(ordered), claim)
    # A three-part clause third: about one caption in five where there are any.
    return ordered[:2] + draws.shuffled(triples)[:1] + ordered[2:]


def _decorate(claim: Meaning, scene: Scene, draws: Draws) -> str | None:
    """Say a claim, perhaps with background or number of objects, or None if long."""
    # Of ten: background last 4, background first 2, number 2, both 1, bare 1.
    roll = draws.below(10)
    full = Meaning(
        claim.phrases,
        claim.relations,
        background=scene.background if roll < 7 else None,
        total=len(scene.objects) if 6 <= roll < 9 else None,
    )
    background_first = roll in (4, 5)
    for meaning in (full, claim):
        caption = say(meaning, background_first=background_first)
        if len(caption.split()) <= MAX_WORDS:
            return caption
    return None
