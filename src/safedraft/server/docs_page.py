"""The page about the API: its routes and their parameters, without scripts or outside files."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = (
    "body { font: 16px/1.5 sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem }"
    "code { background: #8882; padding: 0 .2em } :root { color-scheme: light dark }"
)


def describe_api(name: str, document: Mapping[str, Any]) -> str:
    """Write the page.

    Args:
        name: name of the served model.
        document: the OpenAPI document.
    """
    routes = "".join(
        f"<dt><code>{escape(method.upper())} {escape(path)}</code></dt>"
        f"<dd>{escape(operation.get('description', ''))}{_parameters(operation, document)}</dd>"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        f"<title>SafeDraft: {escape(name)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(name)}</h1><p>{escape(document['info']['description'])} Any client of that "
        "API can be used: its base URL is this server's address and <code>/v1</code>. The types of "
        "requests, responses and errors are in <a href='openapi.json'>openapi.json</a>.</p>"
        f"<dl>{routes}</dl></html>"
    )


def _parameters(operation: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """List the names in an operation's body, the required ones first."""
    content = operation.get("requestBody", {}).get("content", {})
    reference = content.get("application/json", {}).get("schema", {}).get("$ref", "")
    schema = document.get("components", {}).get("schemas", {}).get(reference.rpartition("/")[2], {})
    required = schema.get("required", [])
    names = [*required, *(name for name in schema.get("properties", {}) if name not in required)]
    listed = ", ".join(f"<code>{escape(name)}</code>" for name in names)
    return f"<p>Parameters: {listed}.</p>" if listed else ""
