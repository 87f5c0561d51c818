"""Capture: what really ran, read, wrote and contacted, from outside the process (capture.md).

It knows traces and no worlds: whoever starts a command hands it a process that waits, and the
listener of its filter. Layout: `calls` says which system calls matter and what their arguments
are; `filters` makes seccomp programs of that; a backend (`engine`, `bpf`, `reference`) turns what
happens into the binary records of `records`; `decode` turns records into facts about processes
(`programs`, `files`, `connections`), `batches` and `summary` turn these into events.
"""
