"""``response_format``: the forms that a client can ask for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from safedraft.core.config import StructuredOutputs
from safedraft.server.neutral import Body, TextFormat


class JsonObjectFormat(Body):
    """Replies that are JSON objects."""

    type: Literal["json_object"]

    @property
    def form(self) -> StructuredOutputs:
        """The form as the library names it."""
        return StructuredOutputs(json_object=True)


class NamedSchema(Body):
    """A JSON schema, as OpenAI's API wraps it."""

    definition: Annotated[dict[str, Any], Field(alias="schema")]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    """Whether replies are kept to the schema, which they are here in any case."""


class JsonSchemaFormat(Body):
    """Replies that are valid under a JSON schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema

    @property
    def form(self) -> StructuredOutputs:
        """The form as the library names it."""
        return StructuredOutputs(json_schema=self.json_schema.definition)


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]
