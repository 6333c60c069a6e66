"""Read HTML pages."""

from collections import defaultdict
from html.parser import HTMLParser

_EMPTY = ("meta", "img", "br", "link", "input")


class Page(HTMLParser):
    """What is in a page.

    Attributes:
        texts: Of the elements of each tag, in their order; with that of the elements inside.
        links, ids, images: Addresses of links, ids, and attributes of images.
        language: Of the page.
    """

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = defaultdict(list)
        self.links: list[str] = []
        self.ids: list[str] = []
        self.images: list[dict[str, str]] = []
        self.language = ""
        self._open: list[tuple[str, list[str]]] = []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" else []
        self.images += [found] if tag == "img" else []
        self.language = found["lang"] if tag == "html" else self.language
        if tag not in _EMPTY:
            self._open.append((tag, []))

    def handle_data(self, data):
        for _, texts in self._open:
            texts.append(data)

    def handle_endtag(self, tag):
        opened, texts = self._open.pop()
        assert opened == tag, f"<{opened}> is closed by </{tag}>"
        self.texts[tag].append("".join(texts))

    def close(self):
        super().close()
        assert not self._open, f"{self._open} are not closed"


def read_page(html: str) -> Page:
    """Parse a page, in which each element has to be closed and each id to be used once."""
    page = Page()
    page.feed(html)
    page.close()
    assert len(page.ids) == len({*page.ids})
    return page
