"""The error that a user can cause and fix."""


class UserError(ValueError):
    """A user can cause and fix this: one sentence, printed without a traceback."""
