"""Training, validation and test sources of one's own data, from its name alone."""

import dataclasses

from vilem_jax.config.sources import SOURCE_KINDS, SourceConfig, kind_of
from vilem_jax.data.sources.source import open_source
from vilem_jax.errors import MissingSplitError

NAME = "mine"
MAX_VALIDATION_IMAGES = 1000  # in each of the validations during the run
_VALIDATION_SPLITS = ("val", "validation", "dev")


def own_sources(
    data: str, images: str = "", kind: str = ""
) -> dict[str, dict[str, SourceConfig]]:
    """{"train": {"mine": source}, "validation": ..., "test": ...}.

    Splits train, val (or validation, dev) and test are those of the data. Without a
    validation split, a part of the training images by a hash of their names takes its
    place; without any split, a test part too. With a validation split alone there is
    no test source.

    Args:
      data: what `--data` names; "" leaves the paths empty, with all three splits.

    Raises:
      UserError: the kind of data is not recognised, or it cannot be read.
    """
    cls = SOURCE_KINDS[kind or (kind_of(data) if data else "json")]
    whole = dataclasses.replace(cls(), name=NAME)
    given = {"path": data, "images": images}
    for field in dataclasses.fields(cls):
        if field.name in given:
            whole = dataclasses.replace(whole, **{field.name: given[field.name]})

    def split(*names: str) -> SourceConfig | None:
        found = [dataclasses.replace(whole, split=name) for name in names]
        return next((one for one in found if not data or _has(one)), None)

    train, test = split("train"), split("test")
    validation = split(*_VALIDATION_SPLITS)
    if train is None and validation is None and test is None:
        train, test = whole, dataclasses.replace(whole, part="test")
        parts = "train"
    else:
        # Else `open_source` reports which splits there are.
        train = train or dataclasses.replace(whole, split="train")
        parts = "train+test"
    if validation is None:
        validation = dataclasses.replace(train, part="val")
        train = dataclasses.replace(train, part=parts)
    validation = dataclasses.replace(validation, num_images=MAX_VALIDATION_IMAGES)
    sources = {"train": train, "validation": validation, "test": test}
    return {part: {NAME: one} for part, one in sources.items() if one is not None}


def _has(config: SourceConfig) -> bool:
    try:
        open_source(config)
    except MissingSplitError:
        return False
    return True
