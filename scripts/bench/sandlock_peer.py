"""Runs a command in sandlock (PyPI) and counts what it tells of it: a process of its own.

    python sandlock_peer.py REPORT WORD...

The whole file system may be read and written, all networks reached, and a policy function is
called for each event: that is how sandlock tells what a command does. It tells of calls, and of
no paths. The counts by call go to REPORT, as JSON. Ends with the command's status.
"""

from __future__ import annotations

import json
import sys
from collections import Counter

import sandlock


def main(report: str, words: list[str]) -> int:
    seen: Counter[str] = Counter()

    def tell(event: sandlock.SyscallEvent, _: sandlock.PolicyContext) -> None:
        seen[event.syscall] += 1

    box = sandlock.Sandbox(
        fs_readable=["/"],
        fs_writable=["/"],
        net_allow=["udp://*:*", "*:*"],
        policy_fn=tell,
    )
    done = box.run(words)
    with open(report, "w", encoding="ascii") as file:
        json.dump(seen, file)
    if not done.success:
        tail = (done.stderr or b"").decode("utf-8", "replace").strip()[-200:]
        print(f"sandlock: {done.error or ''} {tail}", file=sys.stderr)
    return done.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
