"""The language of the scenes: how captions are written, read and checked.

    caption  = [against BACKGROUND] [NUMBER shapes with] clause [against BACKGROUND]
    clause   = phrase RELATION phrase [and RELATION phrase]
    phrase   = (a | two | three | four) SIZE [TEXTURE] COLOUR SHAPE[s]
    RELATION = left of | right of | above | below | around | amid

A caption names the background at most once. The second relation of a clause has the
first phrase as its subject. The texture "plain" is left out. No two words have the same
meaning, so replacing a word makes a caption false or ungrammatical.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations, permutations, product

from vilem_jax.data.scenes import layout
from vilem_jax.data.scenes.layout import Group, Rng, Scene, SceneObject, clear_relation

CAPTIONS_PER_IMAGE = 5
MAX_WORDS = 16
NUMBERS = {"two": 2, "three": 3, "four": 4}
SPOKEN_TEXTURES = layout.TEXTURES[1:]
_NUMBER_WORDS = {1: "a"} | {number: word for word, number in NUMBERS.items()}
PLURALS = {noun: noun + ("es" if noun[-1] == "s" else "s") for noun in layout.SHAPES}
_RELATION_WORDS = {
    relation: f"{relation} of" if relation in ("left", "right") else relation
    for relation in layout.RELATIONS
}


def _group(name: str, words: Iterable[str]) -> str:
    return f"(?P<{name}>{'|'.join(words)})"


def _phrase_pattern(i: int) -> str:
    return (
        f"(?:{_group(f'number{i}', NUMBERS)}|a) {_group(f'size{i}', layout.SIZES)} "
        f"(?:{_group(f'texture{i}', SPOKEN_TEXTURES)} )?"
        f"{_group(f'colour{i}', layout.COLOURS)} "
        # A number needs the plural: "es" after an s.
        f"{_group(f'shape{i}', layout.SHAPES)}(?(number{i})(?:(?<=s)es|(?<!s)s))"
    )


_CAPTION = re.compile(
    f"(?:against {_group('before', layout.BACKGROUNDS)} )?"
    f"(?:{_group('total', NUMBERS)} shapes with )?"
    f"{_phrase_pattern(0)} {_group('relation1', _RELATION_WORDS.values())} "
    f"{_phrase_pattern(1)}(?: and {_group('relation2', _RELATION_WORDS.values())} "
    f"{_phrase_pattern(2)})?"
    f"(?(before)|(?: against {_group('after', layout.BACKGROUNDS)})?)"
)


@dataclass(frozen=True)
class Phrase:
    """What a caption says of an object or group; `texture` is None if left out."""

    count: int
    size: str
    texture: str | None
    colour: str
    shape: str

    def fits(self, item: SceneObject) -> bool:
        """Returns whether the phrase, without its count, is true of an object."""
        return look(self) == look(item) and self.texture in (None, item.texture)


@dataclass(frozen=True)
class Meaning:
    """What a caption states.

    Attributes:
        phrases: the objects and groups that it names, in order; 2 or 3.
        relations: (index of a phrase, relation, index of another phrase).
        background: None if left out.
        total: number of all objects in the image, None if left out.
    """

    phrases: tuple[Phrase, ...]
    relations: tuple[tuple[int, str, int], ...]
    background: str | None = None
    total: int | None = None


def look(item: SceneObject | Phrase) -> tuple[str, str, str]:
    """What every phrase says of an object: size, colour and shape."""
    return item.size, item.colour, item.shape


def holds(meaning: Meaning, scene: Scene) -> bool:
    """Returns whether a caption is true of a scene, in its widest reading.

    "a red circle" needs one or more, striped or not, "two red circles" exactly two. A
    side holds for all members of a group; of two diagonal objects, one is both left of
    and above the other. So a caption that is false here is false in any reading.
    """
    if meaning.background not in (None, scene.background):
        return False
    if meaning.total not in (None, len(scene.objects)):
        return False
    candidates = []  # for each phrase, the groups of object indices that it may mean
    for phrase in meaning.phrases:
        fitting = tuple(i for i, o in enumerate(scene.objects) if phrase.fits(o))
        if phrase.count == 1:
            candidates.append([(i,) for i in fitting])
        else:
            candidates.append([fitting] if len(fitting) == phrase.count else [])
    return any(_agree(meaning, scene, groups) for groups in product(*candidates))


def _agree(meaning: Meaning, scene: Scene, groups: tuple[tuple[int, ...], ...]) -> bool:
    """Whether groups of object indices are disjoint and the relations hold."""
    if any(set(a) & set(b) for a, b in combinations(groups, 2)):
        return False
    members = [[scene.objects[i] for i in group] for group in groups]
    return all(
        layout.relation_holds(relation, members[first], members[second])
        for first, relation, second in meaning.relations
    )


def _phrase_words(phrase: Phrase) -> list[str]:
    texture = [] if phrase.texture is None else [phrase.texture]
    noun = phrase.shape if phrase.count == 1 else PLURALS[phrase.shape]
    return [_NUMBER_WORDS[phrase.count], phrase.size, *texture, phrase.colour, noun]


def write(meaning: Meaning, *, background_first: bool = False) -> str:
    """The caption of a meaning: lower case, no punctuation."""
    words = _phrase_words(meaning.phrases[0])
    for order, (_, relation, other) in enumerate(meaning.relations):
        words += ["and"] if order else []
        words += [_RELATION_WORDS[relation], *_phrase_words(meaning.phrases[other])]
    if meaning.total is not None:
        words = [_NUMBER_WORDS[meaning.total], "shapes", "with", *words]
    if meaning.background is not None:
        background = ["against", meaning.background]
        words = background + words if background_first else words + background
    return " ".join(words)


def read(caption: str) -> Meaning | None:
    """What a caption states, or None if it is not a sentence of the grammar."""
    match = _CAPTION.fullmatch(" ".join(caption.split()))
    if match is None:
        return None
    found = match.groupdict()
    phrases = tuple(
        Phrase(
            count=NUMBERS.get(found[f"number{i}"], 1),
            size=found[f"size{i}"],
            texture=found[f"texture{i}"],
            colour=found[f"colour{i}"],
            shape=found[f"shape{i}"],
        )
        for i in range(3)
        if found[f"size{i}"]
    )
    relations = tuple(
        (0, found[f"relation{i}"].removesuffix(" of"), i)
        for i in range(1, len(phrases))
    )
    background = found["before"] or found["after"]
    return Meaning(phrases, relations, background, NUMBERS.get(found["total"]))


def is_true(caption: str, scene: Scene) -> bool:
    """Returns whether a caption is a sentence of the grammar and true of the scene."""
    meaning = read(caption)
    return meaning is not None and holds(meaning, scene)


def describe(scene: Scene, rng: Rng) -> tuple[str, ...] | None:
    """Writes `CAPTIONS_PER_IMAGE` different captions of a scene.

    Each names two or three of its groups; together they name all.

    Returns:
        the captions, or None if the scene has too few different ones.
    """
    claims = _claims(scene, rng)
    captions: list[str] = []
    for attempt in range(6 * CAPTIONS_PER_IMAGE):
        caption = _decorate(claims[attempt % len(claims)], scene, rng)
        if caption is not None and caption not in captions:
            captions.append(caption)
        if len(captions) == CAPTIONS_PER_IMAGE:
            return tuple(captions)
    return None


def _phrase(group: Group) -> Phrase:
    size, texture, colour, shape = group[0].kind
    texture = None if texture == "plain" else texture
    return Phrase(len(group), size, texture, colour, shape)


def _claims(scene: Scene, rng: Rng) -> list[Meaning]:
    """All that a clause may state of a scene; the first ones name all groups.

    Two groups are related only if exactly one relation holds.
    """
    pairs, triples = [], []
    for first, second in permutations(scene.groups, 2):
        relation = clear_relation(first, second)
        if relation is not None:
            phrases = _phrase(first), _phrase(second)
            pairs.append(Meaning(phrases, ((0, relation, 1),)))
    for first, second, third in permutations(scene.groups, 3):
        one, other = clear_relation(first, second), clear_relation(first, third)
        if one is not None and other is not None and one != other:
            phrases = _phrase(first), _phrase(second), _phrase(third)
            triples.append(Meaning(phrases, ((0, one, 1), (0, other, 2))))
    ordered, missing = [], {_phrase(group) for group in scene.groups}
    for claim in rng.shuffled(pairs):
        is_new = not missing.isdisjoint(claim.phrases)
        missing.difference_update(claim.phrases)
        ordered.insert(0 if is_new else len(ordered), claim)
    # A clause of three phrases is third: about one caption in five if there are any.
    return ordered[:2] + rng.shuffled(triples)[:1] + ordered[2:]


def _decorate(claim: Meaning, scene: Scene, rng: Rng) -> str | None:
    """The caption of a claim, perhaps with background or number; None if too long."""
    # Of ten: background last 4, background first 2, number 2, both 1, neither 1.
    roll = rng.below(10)
    full = replace(
        claim,
        background=scene.background if roll < 7 else None,
        total=len(scene.objects) if 6 <= roll < 9 else None,
    )
    for meaning in (full, claim):
        caption = write(meaning, background_first=roll in (4, 5))
        if len(caption.split()) <= MAX_WORDS:
            return caption
    return None
