"""The reference tracer: what the `python` backend runs in a process of its own (capture.md §2).

It is what tests compare the C engine with, and what captures where there is no compiled engine;
slow, and as plain as the kernel's interface lets it be. python-ptrace is licensed GPL-2.0-only:
only `requests` imports it, and nothing but `tracer`, which is started as a program, imports that.
Invariant: whatever goes wrong ends the tracer, and by PTRACE_O_EXITKILL the whole tree with it.

Layout: `tracer` is the program, `loop` waits and decides what each stop means, `tasks` is what is
known of a task; `arguments` turns a call into items; `table` decides about an exec and `approval`
compares it with what was approved; `memory` and `proc` read from a stopped task, `registers` and `requests` change one;
`messages` is what the two processes say to each other.
"""
