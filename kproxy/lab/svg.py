"""Just enough SVG: elements as text, escaped, with numbers cut to tenths. Pure."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr


def element(tag: str, content: str = "", /, **attributes: object) -> str:
    """One element. Underscores in names become dashes; a trailing one is dropped (``class_``)."""
    written = "".join(
        f" {name.rstrip('_').replace('_', '-')}={quoteattr(_value(value))}"
        for name, value in attributes.items()
        if value is not None
    )
    return f"<{tag}{written}>{content}</{tag}>" if content else f"<{tag}{written}/>"


def _value(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def text(x: float, y: float, words: str, class_: str, **more: object) -> str:
    return element("text", escape(words), x=float(x), y=float(y), class_=class_, **more)


def box(x: float, y: float, width: float, height: float, class_: str, **more: object) -> str:
    """A rectangle; ``rx`` rounds its corners."""
    return element(
        "rect",
        x=float(x),
        y=float(y),
        width=float(width),
        height=float(height),
        class_=class_,
        **more,
    )


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def dot(x: float, y: float, radius: float, **more: object) -> str:
    return element("circle", cx=float(x), cy=float(y), r=float(radius), **more)
