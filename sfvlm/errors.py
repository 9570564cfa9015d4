"""What an error of another library says, in the one line there is for it."""

import textwrap


def reason(error: Exception) -> str:
    """What an error says, on one line; its kind where it says nothing."""
    return textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__
