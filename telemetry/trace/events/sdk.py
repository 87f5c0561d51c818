"""What agents and hooks report about themselves (trace.md §4; authority.md §3).

Always `origin: reported`: a process said so. Prompts and results are blobs; there is no
field for free-form thoughts.
"""

from __future__ import annotations

from substrate.telemetry.trace.pack import BlobRef

from .body import Body, body

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .body import Extra, Text


@body
class ToolCall(Body):
    event_type = "tool_call"
    call_id: str
    tool: str
    input: BlobRef | None
    transcript_path: Text | None = None
    extra: Extra = ()


@body
class ToolResult(Body):
    """`status`: ok or error."""

    event_type = "tool_result"
    call_id: str
    status: str
    output: BlobRef | None
    duration_us: int | None = None
    extra: Extra = ()


@body
class LlmCall(Body):
    event_type = "llm_call"
    call_id: str
    model: str
    prompt: BlobRef | None
    provider: str | None = None
    extra: Extra = ()


@body
class LlmResponse(Body):
    """`finish`: the model's own word for why it stopped."""

    event_type = "llm_response"
    call_id: str
    response: BlobRef | None
    finish: str | None
    input_tokens: int | None = None
    output_tokens: int | None = None
    duration_us: int | None = None
    extra: Extra = ()


@body
class AgentDecision(Body):
    """What an agent chose among named options."""

    event_type = "agent_decision"
    decision: str
    options: tuple[str, ...]
    subject: str | None = None
    extra: Extra = ()


@body
class Annotation(Body):
    """A note of a person or a program on a span or the session; `labels` for machines."""

    event_type = "annotation"
    text: Text
    labels: dict[str, Any]
    by: str | None = None
    extra: Extra = ()
