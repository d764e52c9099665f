"""Renders a page from its data: everything inlined, everything escaped, and a policy that lets it fetch nothing."""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from kiwi import storage
from kiwi.reports import figures

TEMPLATES = Path(__file__).parent / "templates"


def write_page(path: Path, template: str, page: Any) -> None:
    """Renders `page`, everything inlined, under a policy that lets it fetch nothing; replaces `path` at once."""
    script = (TEMPLATES / "playback.js").read_text(encoding="utf-8")
    text = (
        _environment()
        .get_template(template)
        .render(
            page=page,
            style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),  # nosec B704 - our own file
            script=Markup(script),  # nosec B704 - our own file
            script_hash=b64encode(sha256(script.encode()).digest()).decode(),
        )
    )
    storage.write_bytes(path, text.encode())


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("count", "decimal", "signed", "percent", "chance", "duration", "clock", "words", "short"):
        environment.filters[name] = getattr(figures, name)
    return environment
