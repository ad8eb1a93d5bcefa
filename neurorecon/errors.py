"""The error a user sees."""


class NeuroreconError(ValueError):
    """One line for the user: which file or argument, what was expected, what was found, what to do.

    Entry points print it without a traceback and exit with status 1. Everything that can go wrong through input
    (files, arrays, configs, a full disk) is raised as this; anything else is a defect of ours.
    """
