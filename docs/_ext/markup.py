"""Markdown from values."""

import re
from collections.abc import Iterable, Sequence

_CODE = re.compile(r"(`[^`]*`)")
_COMMIT = re.compile(r"(?<![\w/])([\w.-]+/[\w.-]+)@([0-9a-f]{7,40})\b")
_URL = re.compile(r"https?://[^\s),;>]*[^\s),;.:>]")


def escape(text: str) -> str:
    """Text in which only `code` is markup."""
    parts = _CODE.split(text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\<>*_\[\]])", r"\\\1", part) for part in parts)


def link(text: str) -> str:
    """Escaped text with its URLs, and its GitHub commits `owner/name@hash`, as links."""
    kept: list[str] = []

    def keep(markup: str) -> str:
        kept.append(markup)
        return f"\0{len(kept) - 1}\0"

    text = _URL.sub(lambda found: keep(f"[{found[0].removeprefix('https://')}]({found[0]})"), text)
    text = _COMMIT.sub(lambda found: keep(f"[{found[0]}](https://github.com/{found[1]}/tree/{found[2]})"), text)
    return re.sub("\0(\\d+)\0", lambda found: kept[int(found[1])], escape(text))


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """A pipe table; `align` holds l or r for each column."""
    rules = ["---:" if side == "r" else "---" for side in align.ljust(len(headings), "l")]
    lines = [headings, rules, *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
