"""`substrate net status|allow|deny|request|log`: the network of the command that runs in a world now."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from substrate.cli import in_world, output
from substrate.cli.messages import say
from substrate.cli.target import NothingFound, pending_target
from substrate.cli.verb import Verb, VerbGroup
from substrate.errors import StateError, UsageError
from substrate.session import net_control
from substrate.world.egress.rules import BadRule, parse_rule
from substrate.world.wire import Message

_world = click.option("--world", metavar="NAME", help="Another world than the directory's.")


def call(world: str | None, kind: bytes, *fields: str) -> Message:
    """The answer of the supervisor whose command runs there. Raises NothingFound, StateError."""
    target = pending_target(world)
    message = net_control.call(target.files.fd, kind, *fields)
    if message is None:
        raise NothingFound(
            f"no command with a filtered or routed network runs in world {target.world.name}",
            hint="rules for the next one: --allow, or [net] allow in the configuration",
        )
    if message.kind != net_control.TOLD:
        raise StateError(message.text(0), hint=message.text(1))
    return message


@click.group("net", cls=VerbGroup)
def command() -> None:
    """Examples:
      substrate net status
      substrate net allow example.com '*.example.net:443'
      substrate net log

    Asks about the network of the command that runs in a world, or changes its rules while it
    runs. A change holds until the command ends and is on the record."""


@command.command("status", cls=Verb)
@_world
@output.format_option
def status_command(world: str | None, form: str) -> int:
    """Examples:
      substrate net status
      substrate net status --format json

    Shows the rules in force, whom the command talked to so far, and what was refused."""
    found: dict[str, Any] = json.loads(call(world, net_control.STATUS).fields[0])
    if form != "table":
        output.put_object("net", found, form)
        return 0
    if found["ports"] is not None:
        ports = ", ".join(map(str, found["ports"])) or "none"
        output.put_visible(f"{'leads out:':<12}ports {ports} alone (no nf_tables here: E-NFT)")
    if "interface" in found:
        where = f"{found['interface']}, {' and '.join(found['addresses'])}"
        output.put_visible(f"{'link:':<12}{where}")
    open_to_all = found["mode"] == "veth" and not found["allow"]
    for key, label in (
        ("allow", "allow"),
        ("deny", "deny"),
        ("private", "private"),
        ("host_ports", "host ports"),
    ):
        shown = ", ".join(map(str, found[key])) or "nothing"
        if key == "allow" and open_to_all:
            shown = "everything that is not special or denied"
        output.put_visible(f"{label + ':':<12}{shown}")
    for scope in found["scopes"]:
        output.put_visible(
            f"{scope['scope']}  {scope['connections']} connections, {scope['bytes_in']} bytes in, "
            f"{scope['bytes_out']} out" + (f", {scope['refused']} refused" * bool(scope["refused"]))
        )
    for refused in found["refused"]:
        output.put_visible(f"refused {refused['what']} ({refused['count']}): {refused['reason']}")
    return 0


def _change(action: str, rules: tuple[str, ...], world: str | None) -> int:
    for rule in rules:
        try:
            parse_rule(rule, action)
        except BadRule as wrong:
            raise UsageError(str(wrong), hint="substrate net --help") from None
    call(world, net_control.CHANGE, action, *rules)
    say(f"substrate: {action}: {', '.join(rules)}, until the command ends")
    return 0


@command.command("allow", cls=Verb)
@click.argument("rules", nargs=-1, required=True)
@_world
def allow_command(rules: tuple[str, ...], world: str | None) -> int:
    """Examples:
      substrate net allow example.com
      substrate net allow git.example.org:22 --world w3

    Lets the command that runs reach these, too, from now on."""
    return _change("allow", rules, world)


@command.command("deny", cls=Verb)
@click.argument("rules", nargs=-1, required=True)
@_world
def deny_command(rules: tuple[str, ...], world: str | None) -> int:
    """Examples:
      substrate net deny telemetry.example.net

    Keeps the command that runs from these from now on, and ends its connections to them."""
    return _change("deny", rules, world)


@command.command("request", cls=Verb)
@click.argument("host", required=False)
@click.option("--path", metavar="PATH", help="A hidden path, in place of a host.")
@click.option("--reason", default="", metavar="TEXT", help="What it is for, for who is asked.")
@output.format_option
def request_command(host: str | None, path: str | None, reason: str, form: str) -> int:
    """Examples:
      substrate net request example.com:443 --reason 'the package index'
      substrate net request --path ~/.config/gh

    For programs in a world: asks its user for a host, or a hidden path, that the world does not have,
    and waits for the answer, which holds for the session. Exit status 1 for a no."""
    if (host is None) == (path is None):
        raise UsageError("a host is asked for, or a path", hint="substrate net request --help")
    if not in_world.is_here():
        raise UsageError(
            "this is no world: nobody has to be asked", hint="--allow, or `substrate net allow`"
        )
    wanted = {"host": host} if host is not None else {"path": os.path.abspath(path or "")}
    found = in_world.ask("request_scopes", {**wanted, "reason": reason})
    if form != "table":
        output.put_object("net.request", {k: v for k, v in found.items() if k != "schema"}, form)
    else:
        said = "allowed" if found["allowed"] else "denied"
        output.put_visible(f"{said}: {host or path}: {found['why']}")
    return 0 if found["allowed"] else 1


@command.command("log", cls=Verb)
@_world
@click.pass_context
def log_command(context: click.Context, world: str | None) -> int:
    """Examples:
      substrate net log

    Prints connections and questions as they come: `substrate trace tail -f --net`."""
    from substrate.cli.trace_tail import tail_command

    target = pending_target(world)
    words = ["-f", "--net", target.files.session_id]
    os.close(target.files.fd)
    return int(tail_command.main(words, standalone_mode=False, prog_name="substrate net log") or 0)
