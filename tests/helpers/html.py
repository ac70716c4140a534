"""HTML pages as a browser reads them."""

from __future__ import annotations

import base64
from html.parser import HTMLParser


class Page(HTMLParser):
    """Words, pictures and attributes of a page; every tag must be closed and nothing loaded."""

    VOID = ("meta", "img")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.pictures: list[bytes] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open
        assert not self.tags & {"script", "link", "iframe"}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        found = dict(attrs)
        assert not {"href", "srcset"} & set(found)
        assert not any(key.startswith("on") for key in found)
        if tag == "img":
            assert found["alt"]
            start, data = found["src"].split("base64,")
            assert start in ("data:image/png;", "data:image/jpeg;")
            self.pictures.append(base64.b64decode(data))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        assert "url(" not in data and "@import" not in data
        self.words.append(data)
