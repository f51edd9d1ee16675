"""The error that a user can cause and fix, and the signal that ends the program."""


class UserError(ValueError):
    """A user can cause and fix this: one sentence, printed without a traceback."""


class MissingSplitError(UserError):
    """The data has no split of that name."""


class Interrupted(KeyboardInterrupt):
    """A signal that ends the program with an exit code."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code
