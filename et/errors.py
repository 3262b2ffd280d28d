"""Errors that are meant for the person at the keyboard."""


class UserError(RuntimeError):
    """Something the user can mend: the message says what is wrong, where, and what to do.

    Entry points print it without a traceback and leave with status 1.
    """
