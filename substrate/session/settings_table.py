"""Every setting, once: its key in files, flags, variable, kind, default, and what it is for.

This table drives the reading of files, variables and flags, `config show --origin`, the help
and the reference. It reads nothing itself. Invariant: a setting that is not here does not
exist anywhere. Spec: shell.md §1.
"""

from __future__ import annotations

from substrate.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Kinds: how a value is written, and what it is inside (setting_values.py).
CHOICE = "choice"  # one of `words`
WORDS = "words"  # a list of `words`
SWITCH = "switch"  # true or false
PATH = "path"  # or a name that is looked up in PATH
FILE = "file"
PATHS = "paths"
NAMES = "names"  # variable names and patterns
PAIRS = "pairs"  # NAME=VALUE
SECONDS = "seconds"  # 30, 1.5, 500ms, 5m, 1h
SIZE = "size"  # bytes: 4096, 512k, 16m, 4g
COUNT = "count"
CPUS = "cpus"  # 1.5 → 1500 thousandths
RULES = "rules"  # of whom the network reaches: example.com, *.example.net:443, 10.0.0.0/8:5432
RANGES = "ranges"  # of addresses: 10.0.0.0/8
RANGE = "range"  # one of IPv4, of 2 addresses at least
PORTS = "ports"  # 1 to 65535
PUBLISHED = "published"  # 8080:80, 127.0.0.1:8080:80, [::1]:8080:80

#: kinds whose values of all layers add up
LISTS = (PATHS, NAMES, PAIRS, RULES, RANGES, PORTS, PUBLISHED)

# How a project's file may tighten a setting: not at all, only to one word, only downward,
# only by adding.
NEVER, ONLY_NONE, LOWER, ADD = "", "none", "lower", "add"


@value
class Flag:
    """A flag that sets a setting. `sets`: the value, for a flag that takes none; `text`: what
    that value does; `attached`: what may stand behind `=` all the same."""

    name: str
    sets: str | None = None
    text: str = ""
    attached: str = ""

    def shown(self, metavar: str) -> str:
        """As in a help text; `metavar`: the setting's."""
        if self.sets is None:
            return f"{self.name} {metavar}"
        return f"{self.name}[={self.attached}]" if self.attached else self.name


@value
class Setting:
    """One row. `key`: in a file, `table.key` in a TOML table. `default`: as it is inside."""

    key: str
    kind: str
    default: Any
    variable: str
    text: str
    flags: tuple[Flag, ...] = ()
    words: tuple[str, ...] = ()
    metavar: str = ""
    project: str = NEVER


def _one(name: str) -> tuple[Flag, ...]:
    return (Flag(name=name),)


def _limit(name: str, kind: str, metavar: str, text: str, default: int | None = None) -> Setting:
    return Setting(
        key=f"limits.{name}",
        kind=kind,
        default=default,
        variable=f"SUBSTRATE_LIMIT_{name.upper()}",
        metavar=metavar,
        text=text,
        project=LOWER,
    )


#: without these nothing runs, unless the user takes one away by name
DEFAULT_REQUIRE = ("fs", "net", "pid")

SETTINGS: tuple[Setting, ...] = (
    Setting(
        key="world",
        kind=CHOICE,
        words=("enabled", "disabled"),
        default="enabled",
        variable="SUBSTRATE_WORLD",
        flags=(
            Flag(
                name="--no-world",
                sets="disabled",
                text="run on the host itself: recorded, not isolated",
            ),
        ),
        text="run in a world; disabled: on the host itself, recorded but not isolated",
    ),
    Setting(
        key="backend",
        kind=CHOICE,
        words=("auto", "ns-root-idmap", "ns-root", "ns-user", "guard"),
        default="auto",
        variable="SUBSTRATE_BACKEND",
        flags=_one("--backend"),
        metavar="NAME",
        text="what worlds are made with; auto: the best that works here",
    ),
    Setting(
        key="require",
        kind=WORDS,
        words=("fs", "net", "pid", "user", "ipc", "uts", "limits", "nf_tables", "gate"),
        default=DEFAULT_REQUIRE,
        variable="SUBSTRATE_REQUIRE",
        flags=_one("--require"),
        metavar="LIST",
        text="isolation without which nothing runs, separated by commas",
    ),
    Setting(
        key="policy",
        kind=FILE,
        default=None,
        variable="SUBSTRATE_POLICY",
        flags=_one("--policy"),
        metavar="FILE",
        text="a policy file that counts besides those of the system, the user and the project",
    ),
    Setting(
        key="net.mode",
        kind=CHOICE,
        words=("none", "filtered", "veth", "host"),
        default="filtered",
        variable="SUBSTRATE_NET",
        flags=_one("--net"),
        metavar="MODE",
        text="the network of the world: none; filtered: what is allowed by name; veth: a link of its own, "
        "for UDP and ping, as root; host: not isolated",
        project=ONLY_NONE,
    ),
    Setting(
        key="net.allow",
        kind=RULES,
        default=(),
        variable="SUBSTRATE_ALLOW",
        flags=_one("--allow"),
        metavar="RULE",
        text="whom a filtered network reaches: HOST[:PORT], *.DOMAIN, ADDRESS/BITS, tcp://HOST:PORT",
    ),
    Setting(
        key="net.deny",
        kind=RULES,
        default=(),
        variable="SUBSTRATE_DENY",
        flags=_one("--deny"),
        metavar="RULE",
        text="whom it does not reach, whatever is allowed",
        project=ADD,
    ),
    Setting(
        key="net.private",
        kind=RANGES,
        default=(),
        variable="SUBSTRATE_PRIVATE",
        flags=_one("--private"),
        metavar="RANGE",
        text="private addresses (10.0.0.0/8) to which an allowed name may lead",
    ),
    Setting(
        key="net.veth_range",
        kind=RANGE,
        default="100.127.0.0/16",
        variable="SUBSTRATE_VETH_RANGE",
        metavar="RANGE",
        text="from which links of --net veth have their addresses, two each",
    ),
    Setting(
        key="net.host_ports",
        kind=PORTS,
        default=(),
        variable="SUBSTRATE_HOST_PORTS",
        flags=_one("--host-port"),
        metavar="PORT",
        text="a port of the host's localhost that is behind the world's localhost, too",
    ),
    Setting(
        key="net.publish",
        kind=PUBLISHED,
        default=(),
        variable="SUBSTRATE_PUBLISH",
        flags=_one("--publish"),
        metavar="PORT:PORT",
        text="[ADDRESS:]PORT of the host at which a port of the world is reached: 8080:80",
    ),
    Setting(
        key="net.record",
        kind=SIZE,
        default=0,
        variable="SUBSTRATE_RECORD_NET",
        flags=(
            Flag(
                name="--record-net",
                sets="1m",
                attached="SIZE",
                text="record what is said in plain connections, so many bytes of each direction (1m)",
            ),
        ),
        metavar="SIZE",
        text="bytes that are recorded of each direction of a plain connection of a filtered network; 0: none",
    ),
    Setting(
        key="net.record_total",
        kind=SIZE,
        default=64 << 20,
        variable="SUBSTRATE_RECORD_NET_TOTAL",
        metavar="SIZE",
        text="bytes that are recorded so of one command in all; as much memory may be held for it",
    ),
    Setting(
        key="shell",
        kind=PATH,
        default=None,
        variable="SUBSTRATE_SHELL",
        flags=_one("--shell"),
        metavar="PATH",
        text="the shell that runs commands (default /bin/bash, else /bin/sh)",
    ),
    Setting(
        key="timeout",
        kind=SECONDS,
        default=None,
        variable="SUBSTRATE_TIMEOUT",
        flags=_one("--timeout"),
        metavar="TIME",
        text="end the command after this long: 30, 5m, 1h (exit status 124); 0: never",
    ),
    Setting(
        key="background",
        kind=SECONDS,
        default=5.0,
        variable="SUBSTRATE_BACKGROUND",
        flags=_one("--background"),
        metavar="TIME",
        text="how long background processes may go on after the command itself",
    ),
    Setting(
        key="wait",
        kind=SECONDS,
        default=0.0,
        variable="SUBSTRATE_WAIT",
        flags=_one("--wait"),
        metavar="TIME",
        text="how long to wait for a world in which another command runs",
    ),
    Setting(
        key="at_end",
        kind=CHOICE,
        words=("ask", "keep", "apply", "discard"),
        default=None,
        variable="SUBSTRATE_AT_END",
        flags=(
            Flag(name="--ask", sets="ask", text="ask at the end (default on a terminal)"),
            Flag(name="--keep", sets="keep", text="keep the changes pending (default elsewhere)"),
            Flag(name="--apply", sets="apply", text="apply all that is pending at the end"),
            Flag(name="--discard", sets="discard", text="discard all that is pending at the end"),
        ),
        text="what happens to the changes afterwards (default ask on a terminal, else keep)",
    ),
    Setting(
        key="hide",
        kind=PATHS,
        default=(),
        variable="SUBSTRATE_HIDE",
        flags=_one("--hide"),
        metavar="PATH",
        text="a path that the world does not see, besides those that are hidden anyway",
        project=ADD,
    ),
    Setting(
        key="show",
        kind=PATHS,
        default=(),
        variable="SUBSTRATE_SHOW",
        flags=_one("--show"),
        metavar="PATH",
        text="a path that is hidden by default and shall be seen, with all below it",
    ),
    Setting(
        key="ro",
        kind=PATHS,
        default=(),
        variable="SUBSTRATE_RO",
        flags=_one("--ro"),
        metavar="PATH",
        text="a path that the world can read and not write",
        project=ADD,
    ),
    Setting(
        key="rw",
        kind=PATHS,
        default=(),
        variable="SUBSTRATE_RW",
        flags=_one("--rw"),
        metavar="PATH",
        text="a path that a rootless world may change too, copy-on-write as everything else",
    ),
    Setting(
        key="shell_only",
        kind=SWITCH,
        default=False,
        variable="SUBSTRATE_SHELL_ONLY",
        flags=(Flag(name="--shell-only", sets="true"),),
        text="the workspace is the host's own, for whoever edits it by other tools at the same time: nothing of it "
        "can be undone; the rest is copy-on-write",
    ),
    Setting(
        key="pass_through",
        kind=PATHS,
        default=(),
        variable="SUBSTRATE_PASS_THROUGH",
        metavar="PATH",
        text="small files below /tmp, by * and ?, that reach the host after each command",
    ),
    Setting(
        key="env.pass",
        kind=NAMES,
        default=(),
        variable="SUBSTRATE_ENV_PASS",
        flags=_one("--env"),
        metavar="NAME[=VALUE]",
        text="a variable to pass in, also if its name looks like a secret; or to set",
    ),
    Setting(
        key="env.drop",
        kind=NAMES,
        default=(),
        variable="SUBSTRATE_ENV_DROP",
        flags=_one("--env-drop"),
        metavar="NAME",
        text="a variable, or a pattern with *, that is not passed in",
        project=ADD,
    ),
    Setting(
        key="env.set",
        kind=PAIRS,
        default=(),
        variable="SUBSTRATE_ENV_SET",
        metavar="NAME=VALUE",
        text="variables to set in the world (in the variable: one a line)",
    ),
    _limit("pids", COUNT, "N", "processes and threads of the world", 4096),
    _limit("memory", SIZE, "SIZE", "memory of the world: 512m, 4g"),
    _limit("cpu", CPUS, "CPUS", "processors that the world may use: 1.5"),
    _limit("open_files", COUNT, "N", "open files of a process"),
    _limit("file_size", SIZE, "SIZE", "size of a file that is written"),
    _limit("disk", SIZE, "SIZE", "what one command may write in all"),
    _limit("egress", SIZE, "SIZE", "what one command may send and receive by its network in all"),
    _limit(
        "lookups",
        COUNT,
        "N",
        "different names that are looked up under one wildcard rule; a sixteenth of that in a minute",
        1000,
    ),
    Setting(
        key="capture",
        kind=CHOICE,
        words=("off", "exec", "files", "all"),
        default="files",
        variable="SUBSTRATE_CAPTURE",
        flags=_one("--capture"),
        metavar="LEVEL",
        text="what is recorded of processes: exec (programs), files (and files and connections), "
        "all (every system call), off",
    ),
    Setting(
        key="capture_backend",
        kind=CHOICE,
        words=("auto", "hybrid", "ptrace", "python", "notify", "bpf"),
        default="auto",
        variable="SUBSTRATE_CAPTURE_BACKEND",
        flags=_one("--capture-backend"),
        metavar="NAME",
        text="what captures; auto: the best that works here",
    ),
    Setting(
        key="exact_reads",
        kind=SWITCH,
        default=False,
        variable="SUBSTRATE_EXACT_READS",
        flags=(Flag(name="--exact-reads", sets="true"),),
        text="record the results of opens that only read, too, which takes longer",
    ),
    Setting(
        key="lookups",
        kind=SWITCH,
        default=False,
        variable="SUBSTRATE_LOOKUPS",
        flags=(Flag(name="--lookups", sets="true"),),
        text="record lookups, too: stat, access, readlink and directory listings",
    ),
    Setting(
        key="record_max",
        kind=SIZE,
        default=16 << 20,
        variable="SUBSTRATE_RECORD_MAX",
        flags=_one("--record-max"),
        metavar="SIZE",
        text="bytes that are recorded of a stream; what comes after is counted and digested",
    ),
    Setting(
        key="record_terminal",
        kind=SIZE,
        default=0,
        variable="SUBSTRATE_RECORD_TERMINAL",
        flags=(
            Flag(
                name="--record-terminal",
                sets="8m",
                attached="SIZE",
                text="record what a command shows on its terminal, as asciicast, so many bytes (8m)",
            ),
        ),
        metavar="SIZE",
        text="bytes that are recorded of what a command shows on its terminal, as asciicast; 0: none",
    ),
    Setting(
        key="durability",
        kind=CHOICE,
        words=("command", "event", "none"),
        default="command",
        variable="SUBSTRATE_DURABILITY",
        flags=_one("--durability"),
        metavar="WHEN",
        text="when the trace is synced: before a status is handed back, at each event, never",
    ),
    Setting(
        key="layer_sync",
        kind=SWITCH,
        default=False,
        variable="SUBSTRATE_LAYER_SYNC",
        flags=(Flag(name="--sync-layers", sets="true"),),
        text="sync what the command changed before its status is handed back",
    ),
    Setting(
        key="soft_max",
        kind=SIZE,
        default=1 << 30,
        variable="SUBSTRATE_SOFT_MAX",
        metavar="SIZE",
        text="what is kept of one command that shares its layer with others; what is beyond cannot be "
        "undone or applied by itself",
    ),
    Setting(
        key="overflow",
        kind=CHOICE,
        words=("block", "drop", "halt"),
        default="block",
        variable="SUBSTRATE_OVERFLOW",
        flags=_one("--overflow"),
        metavar="HOW",
        text="when the trace cannot be written: wait, lose and count, or stop",
    ),
    Setting(
        key="pty",
        kind=CHOICE,
        words=("auto", "always", "never"),
        default="auto",
        variable="SUBSTRATE_PTY",
        flags=(
            Flag(name="--pty", sets="always", text="give the command a terminal of its own"),
            Flag(name="--no-pty", sets="never", text="give it pipes, also on a terminal"),
        ),
        text="whether the command gets a terminal of its own; auto: on a terminal",
    ),
    Setting(
        key="ptrace",
        kind=SWITCH,
        default=False,
        variable="SUBSTRATE_PTRACE",
        flags=(Flag(name="--ptrace", sets="true"),),
        text="let debuggers work inside the world",
    ),
    Setting(
        key="userns",
        kind=SWITCH,
        default=False,
        variable="SUBSTRATE_USERNS",
        flags=(Flag(name="--userns", sets="true"),),
        text="let programs make namespaces of their own inside the world (sandboxes, containers)",
    ),
    Setting(
        key="gc.keep",
        kind=SECONDS,
        default=7 * 86400.0,
        variable="SUBSTRATE_GC_KEEP",
        metavar="TIME",
        text="how long `world gc` keeps what was undone, applied or displaced: 12h, 7d",
    ),
    Setting(
        key="gc.quota",
        kind=SIZE,
        default=20 << 30,
        variable="SUBSTRATE_GC_QUOTA",
        metavar="SIZE",
        text="what all that may take on the disk before the oldest goes earlier: 20g",
    ),
)

BY_KEY = {setting.key: setting for setting in SETTINGS}
#: key → the first part of a table's keys
TABLES = tuple(dict.fromkeys(key.partition(".")[0] for key in BY_KEY if "." in key))
