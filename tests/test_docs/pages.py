"""The pages of documentation, and the code in them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in (
        "README.md",
        "docs/*.md",
        "configs/**/README.md",
        "benchmarks/README.md",
        "mmmsv/kernels/README.md",
        "tests/README.md",
    )
    for path in ROOT.glob(pattern)
)
_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        line: Where it begins in its page.
        language: What stands behind the fence, ``bash`` or ``python`` as a rule.
        code: What stands between the fences.
        why_not: Why it is not run, out of the comment above it.
    """

    line: int
    language: str
    code: str
    why_not: str | None


def blocks(page: Path) -> list[Block]:
    """Find the fenced blocks of a page, given by its path in the repository, in their order."""
    text = (ROOT / page).read_text()
    return [
        Block(text.count("\n", 0, match.start()) + 1, match["language"], match["code"], match["why"])
        for match in _BLOCK.finditer(text)
    ]
