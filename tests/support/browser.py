"""A browser that prints what a page becomes, and what is seen in that."""

from __future__ import annotations

import shutil
from html.parser import HTMLParser

CHROMIUM = shutil.which("chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=3000"),
)


class Seen(HTMLParser):
    def __init__(self):
        super().__init__()
        self.captions, self.links, self.svgs, self.tag = [], [], 0, ""

    def handle_starttag(self, tag, attrs):
        self.tag = tag
        self.svgs += tag == "svg"
        self.links += [v for name, v in attrs if name in ("src", "href") and not v.startswith(("#", "data:"))]

    def handle_data(self, data):
        if self.tag == "caption" and data.strip():
            self.captions.append(data.strip())
