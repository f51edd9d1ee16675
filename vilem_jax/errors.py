"""What a user can cause and repair."""


class UserError(ValueError):
    """What a user can cause and mend: one sentence, shown without a traceback."""
