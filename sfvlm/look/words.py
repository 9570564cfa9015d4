"""What replies cost and how two of them differ, in words for people."""

import difflib

from ..hosts.host import Host
from ..hosts.reply import Timings


def budget_in_words(host: Host) -> str:
    """What a host reads: "49 tokens a photo", or "2928 tokens a large square photo" where it cuts photos into tiles."""
    return f"{host.token_budget} tokens {'a large square photo' if host.tiled else 'a photo'}"


def cost_in_words(timings: Timings) -> str:
    """One line: "49 tokens a photo · encoded in 12 ms · first word after 80 ms · 35 tokens/s · 1.2 MB of cache"."""
    parts = []
    if timings.tokens_per_image:
        parts.append(f"{timings.tokens_per_image:.0f} tokens a photo")
    if timings.encode_ms is not None:
        parts.append(f"encoded in {duration(timings.encode_ms)}")
    if timings.first_token_ms is not None:
        parts.append(f"first word after {duration(timings.first_token_ms)}")
    if timings.tokens_per_second is not None:
        parts.append(f"{timings.tokens_per_second:.0f} tokens/s")
    parts.append(f"{size(timings.cache_bytes)} of cache")
    return " · ".join(parts)


def duration(milliseconds: float) -> str:
    """Milliseconds, or seconds from one on."""
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def size(count: float) -> str:
    """Bytes in kB, MB or GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def difference_in_words(dense: Timings, sparse: Timings, dense_text: str, sparse_text: str) -> str:
    """How the sparse reply differs from the dense one, in a sentence or two."""
    same = dense_text.strip() == sparse_text.strip()
    said = "The same answer" if same else "Another answer"
    tokens = f"{said} from {sparse.tokens_per_image:.0f} instead of {dense.tokens_per_image:.0f} tokens a photo."
    costs = [
        _times("encoding", dense.encode_ms, sparse.encode_ms),
        _times("the first word", dense.first_token_ms, sparse.first_token_ms),
        _times("the cache", dense.cache_bytes, sparse.cache_bytes, "smaller", "larger"),
    ]
    told = [cost for cost in costs if cost is not None]
    return f"{tokens} Sparse against dense: {', '.join(told)}." if told else tokens


def _times(
    what: str, dense: float | None, sparse: float | None, less: str = "faster", more: str = "slower"
) -> str | None:
    if not dense or not sparse:
        return None
    ratio = dense / sparse
    if 0.95 < ratio < 1.05:
        return f"{what} as with dense"
    return f"{what} {max(ratio, 1 / ratio):.1f} times {less if ratio > 1 else more}"


def word_difference(dense: str, sparse: str) -> list[tuple[str, str | None]]:
    """Runs of words with the side that alone says them, "dense" or "sparse"; None for what both say."""
    a, b = dense.split(), sparse.split()
    runs: list[tuple[str, str | None]] = []
    for kind, a1, a2, b1, b2 in difflib.SequenceMatcher(a=a, b=b, autojunk=False).get_opcodes():
        if kind == "equal":
            runs.append((" ".join(a[a1:a2]), None))
            continue
        for words, side in ((a[a1:a2], "dense"), (b[b1:b2], "sparse")):
            if words:
                runs.append((" ".join(words), side))
    return runs
