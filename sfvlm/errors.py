"""What an error of another library says, in the one line there is for it."""

import textwrap


def reason(error: Exception) -> str:
    """What an error says, on one line; its kind where it says nothing."""
    return shortened(str(error)) or type(error).__name__


def shortened(text: str) -> str:
    """A text on one line, cut where it is long."""
    return textwrap.shorten(text, 300, placeholder=" ...")
