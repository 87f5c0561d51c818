"""`substrate completion bash|zsh|fish`: static scripts, made from the tables and the commands.

The scripts call nothing of ours while somebody types. Spec: bash(1) "Programmable
Completion", zshcompsys(1), fish complete(1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import click

from substrate.cli.options import OPTIONS, VERBS
from substrate.cli.verb import Verb
from substrate.session.settings_table import BY_KEY, PATH, PATHS, SETTINGS

SHELLS = ("bash", "zsh", "fish")
_FILE_OPTIONS = ("--config", "--json-status")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A command: the words that lead to it, the commands below it, its options."""

    path: tuple[str, ...]
    below: dict[str, str]
    options: dict[str, str]
    choices: tuple[str, ...] = ()


def run() -> list[Node]:
    """All commands, outermost first."""
    from substrate.cli.verbs import root

    context = click.Context(root, info_name="substrate")
    run_options = {option.name: option.text for option in OPTIONS}
    nodes = [Node(path=(), below=dict(VERBS), options={**run_options, "--help": "help"})]
    for name in VERBS:
        command = root.get_command(context, name)
        assert command is not None
        nodes += _nodes((name,), command, context)
    return [
        Node(path=n.path, below={}, options={**run_options, "--help": "help"})
        if n.path == ("run",)
        else n
        for n in nodes
    ]


def _nodes(path: tuple[str, ...], command: click.Command, parent: click.Context) -> Iterator[Node]:
    context = click.Context(command, info_name=path[-1], parent=parent)
    options = {
        name: getattr(param, "help", "") or ""
        for param in command.params
        if isinstance(param, click.Option)
        for name in param.opts
        if name.startswith("--")
    }
    choices = tuple(
        str(choice)
        for param in command.params
        if isinstance(param, click.Argument) and isinstance(param.type, click.Choice)
        for choice in param.type.choices
    )
    if path == ("trace", "verify"):
        options = dict.fromkeys(_verifier_options(), "")
    below: dict[str, str] = {}
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            below[name] = inner.get_short_help_str(60)
    yield Node(path=path, below=below, options={**options, "--help": "help"}, choices=choices)
    if isinstance(command, click.Group):
        for name in below:
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _nodes((*path, name), inner, context)


def _verifier_options() -> list[str]:
    from substrate.cli.trace_verify import VERIFY_HELP

    return [w.strip() for w in VERIFY_HELP.split() if w.startswith("--")]


def _values() -> dict[str, tuple[str, ...]]:
    """Options of the run forms whose value is one of some words."""
    found = {o.name: BY_KEY[o.key].words for o in OPTIONS if o.metavar and o.key}
    found["--limit"] = tuple(
        f"{s.key.partition('.')[2]}=" for s in SETTINGS if s.key.startswith("limits.")
    )
    found["--format"] = ("table", "json", "jsonl")
    return {name: words for name, words in found.items() if words}


def _files() -> tuple[str, ...]:
    settings = (o.name for o in OPTIONS if o.key and BY_KEY[o.key].kind in (PATH, PATHS))
    return tuple(dict.fromkeys((*settings, *_FILE_OPTIONS)))


# --- bash


def render_bash(nodes: list[Node]) -> str:
    cases = []
    for node in nodes:
        words = " ".join([*node.below, *node.choices, *node.options])
        cases.append(f"    '{' '.join(node.path)}') words='{words}' ;;")
    deeper = " ".join(f"'{' '.join(n.path)}'" for n in nodes if n.path)
    values = [
        f"    {name}) COMPREPLY=($(compgen -W '{' '.join(words)}' -- \"$cur\")); return ;;"
        for name, words in _values().items()
    ]
    return f"""\
# completion of substrate for bash; put it where bash-completion looks, or source it
_substrate() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} at= words= i word
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${{COMP_WORDS[i]}}
    [ "$word" = -- ] && {{ COMPREPLY=($(compgen -c -- "$cur")); return; }}
    local next="${{at:+$at }}$word" known
    for known in {deeper}; do
      [ "$next" = "$known" ] && at=$next
    done
  done
  case $prev in
{chr(10).join(values)}
    {"|".join(_files())}) COMPREPLY=($(compgen -f -- "$cur")); return ;;
  esac
  case $at in
{chr(10).join(cases)}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
  case $at in
    diff|apply) [[ $cur = -* ]] || COMPREPLY+=($(compgen -f -- "$cur")) ;;
  esac
}}
complete -o bashdefault -F _substrate substrate
"""


# --- zsh


def _zsh(text: str) -> str:
    text = text.partition("\n")[0]
    for sign in "\\:[]'\"`$":
        text = text.replace(sign, "\\" + sign if sign in "\\:[]" else "")
    return text


def render_zsh(nodes: list[Node]) -> str:
    cases = []
    for node in nodes:
        listed = [
            *(f"'{name}:{_zsh(text)}'" for name, text in node.below.items()),
            *(f"'{name}'" for name in node.choices),
            *(f"'{name}:{_zsh(text)}'" for name, text in node.options.items()),
        ]
        cases.append(f"    '{' '.join(node.path)}') found=({' '.join(listed)}) ;;")
    deeper = " ".join(f"'{' '.join(n.path)}'" for n in nodes if n.path)
    return f"""\
#compdef substrate
# completion of substrate for zsh; put it as _substrate into a directory of $fpath
_substrate() {{
  local at= next known i
  local -a found
  for ((i = 2; i < CURRENT; i++)); do
    [[ $words[i] == -- ]] && {{ _command_names -e; return }}
    next="${{at:+$at }}$words[i]"
    for known in {deeper}; do
      [[ $next == $known ]] && at=$next
    done
  done
  case $words[CURRENT-1] in
    {"|".join(_files())}) _files; return ;;
  esac
  case $at in
{chr(10).join(cases)}
  esac
  _describe -o 'substrate' found
  case $at in
    diff|apply) [[ $PREFIX == -* ]] || _files ;;
  esac
}}
_substrate "$@"
"""


# --- fish


def _fish(text: str) -> str:
    return text.partition("\n")[0].replace("\\", "\\\\").replace("'", "\\'")


def render_fish(nodes: list[Node]) -> str:
    lines = ["# completion of substrate for fish; put it into ~/.config/fish/completions/"]
    verbs = " ".join(VERBS)
    values = _values()
    for node in nodes:
        if not node.path:
            where = f"not __fish_seen_subcommand_from {verbs}"
        else:
            where = f"__fish_seen_subcommand_from {node.path[0]}"
            if len(node.path) > 1:
                where += f"; and __fish_seen_subcommand_from {node.path[1]}"
        for name, text in node.below.items():
            lines.append(f"complete -c substrate -f -n '{where}' -a {name} -d '{_fish(text)}'")
        for name in node.choices:
            lines.append(f"complete -c substrate -f -n '{where}' -a {name}")
        for name, text in node.options.items():
            tail = f" -d '{_fish(text)}'" if text else ""
            if name in values:
                tail = f" -x -a '{' '.join(values[name])}'{tail}"
            elif name in _files():
                tail = f" -r -F{tail}"
            lines.append(f"complete -c substrate -n '{where}' -l {name[2:]}{tail}")
    return "\n".join(lines) + "\n"


RENDERERS = {"bash": render_bash, "zsh": render_zsh, "fish": render_fish}


@click.command("completion", cls=Verb)
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> int:
    """Examples:
      substrate completion bash > ~/.local/share/bash-completion/completions/substrate
      eval "$(substrate completion bash)"

    Prints a completion script for a shell."""
    click.echo(RENDERERS[shell](run()), nl=False)
    return 0
