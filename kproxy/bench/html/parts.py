"""HTML that its content cannot break: text is escaped unless it is markup of ours. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from xml.sax.saxutils import escape, quoteattr

#: Elements without an end tag.
_VOID = frozenset({"img", "link", "meta"})


class Html(str):
    """Markup. All other text is content and gets escaped."""

    __slots__ = ()


def tag(name: str, /, *content: str | Iterable[str], **attributes: str | int | None) -> Html:
    """One element. ``content`` is markup, or text that is escaped; attributes that are None are
    left out, underscores in their names become dashes, a trailing one is dropped (``class_``)."""
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}={quoteattr(str(value))}"
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{joined(*content)}</{name}>")


def joined(*content: str | Iterable[str]) -> Html:
    """Pieces after each other."""
    return Html("".join(_piece(each) for each in content))


def _piece(content: str | Iterable[str]) -> str:
    if isinstance(content, Html):
        return content
    if isinstance(content, str):
        return escape(content)
    return joined(*content)


def table(
    caption: str | Html, heads: Iterable[str], bodies: Iterable[Html], *, class_: str = ""
) -> Html:
    """A table that scrolls by itself where a page is narrow; ``bodies`` are its tbody elements."""
    head = tag("thead", tag("tr", [tag("th", each, scope="col") for each in heads]))
    whole = tag("table", tag("caption", caption), head, bodies, class_=class_ or None)
    # Reachable by keyboard, since it may have to be scrolled.
    return tag("div", whole, class_="scroll", tabindex=0, role="group", aria_label="table")
