"""What mkdocs does besides: pages that lie at the top of the repository are shown on the site, with their links."""

import re
from pathlib import Path
from typing import Any

AT_THE_TOP = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page; of one that lies at the top, its own. A link to a file that is no page becomes the file's name."""
    name = AT_THE_TOP.get(page.file.src_uri)
    if name is None:
        return markdown
    text = (Path(__file__).parents[1] / name).read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/([^)]+)\)", r"](\1)", text)
    pages = {top: here for here, top in AT_THE_TOP.items()}
    text = re.sub(
        r"\]\((" + "|".join(pages) + r")(#[^)]*)?\)", lambda found: f"]({pages[found[1]]}{found[2] or ''})", text
    )
    return re.sub(
        r"\[([^]]+)\]\((?!https?:|#)((?:[\w.]+/)*[\w.]+\.(?!md)\w+|(?:[\w.]+/)+|README\.md)(#[^)]*)?\)", r"\1", text
    )
