"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """Something the user can mend: one line that names the file, site or key, what was found, what was expected and the cure.

    The command line prints the message without a traceback and exits with 2.
    """
