"""Egress: a world reaches only what is named (world.md §6).

Inside the world's network namespace there is `lo` and nothing else: every address is local, an
nftables table leads names to a resolver and connections to a listener, and refuses the rest
(`namespace`). Outside, a process of its own holds these listeners and decides: it answers names
with addresses that stand for them (`dns`, `fakes`), looks at what a client says first
(`inspector`), resolves the name for real, connects and moves the bytes (`relay`). Invariant:
when that process or its supervisor is gone there is no way out.
"""
