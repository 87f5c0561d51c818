"""The event types of trace.md §4 as values: one module a family, loaded when it is needed.

`-c` imports the modules that it writes (`session`, `world`, `command`, `changes`, `chain`,
`notice`); readers go through `read_body`, which loads the family of an event type.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .body import Body

#: event type → (module, class)
FAMILIES = {
    "session_start": ("session", "SessionStart"),
    "session_end": ("session", "SessionEnd"),
    "world_start": ("world", "WorldStart"),
    "layer_cut": ("world", "LayerCut"),
    "squash": ("layers", "Squash"),
    "snapshot": ("layers", "Snapshot"),
    "rollback": ("layers", "Rollback"),
    "undo": ("layers", "Undo"),
    "fork": ("layers", "Fork"),
    "gc": ("layers", "Gc"),
    "policy_loaded": ("policy", "PolicyLoaded"),
    "policy_decision": ("policy", "PolicyDecision"),
    "command_start": ("command", "CommandStart"),
    "command_end": ("command", "CommandEnd"),
    "terminal_recording": ("command", "TerminalRecording"),
    "process_fork": ("process", "ProcessFork"),
    "process_start": ("process", "ProcessStart"),
    "process_exit": ("process", "ProcessExit"),
    "file_batch": ("process", "FileBatch"),
    "syscall_batch": ("process", "SyscallBatch"),
    "net_connect": ("net", "NetConnect"),
    "net_listen": ("net", "NetListen"),
    "net_accept": ("net", "NetAccept"),
    "dns_query": ("net", "DnsQuery"),
    "net_close": ("net", "NetClose"),
    "fs_diff": ("changes", "FsDiff"),
    "fs_apply": ("changes", "FsApply"),
    "fs_discard": ("changes", "FsDiscard"),
    "input_manifest": ("inputs", "InputManifest"),
    "coverage": ("notice", "Coverage"),
    "budget": ("notice", "Budget"),
    "bypass": ("notice", "Bypass"),
    "error": ("notice", "Error"),
    "tool_call": ("sdk", "ToolCall"),
    "tool_result": ("sdk", "ToolResult"),
    "llm_call": ("sdk", "LlmCall"),
    "llm_response": ("sdk", "LlmResponse"),
    "agent_decision": ("sdk", "AgentDecision"),
    "annotation": ("sdk", "Annotation"),
    "replay_start": ("replay", "ReplayStart"),
    "replay_result": ("replay", "ReplayResult"),
    "log_drop": ("chain", "LogDrop"),
    "gap": ("chain", "Gap"),
    "recovery": ("chain", "Recovery"),
    "redaction": ("chain", "Redaction"),
    "key_epoch": ("seal", "KeyEpoch"),
    "chain_seal": ("seal", "ChainSeal"),
}


def class_of(event_type: str) -> type[Body] | None:
    """The class of an event type; None for one that this version does not know."""
    family = FAMILIES.get(event_type)
    if family is None:
        return None
    from importlib import import_module

    made: type[Body] = getattr(import_module(f"{__name__}.{family[0]}"), family[1])
    return made


def read_body(event_type: str, obj: dict[str, Any]) -> Body | None:
    """The typed body of an event, or None if its type is unknown. Raises TraceCorrupt."""
    cls = class_of(event_type)
    return None if cls is None else cls.from_body(obj)
