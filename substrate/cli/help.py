"""The help of `substrate` itself, made from the tables of options and verbs.

Pure. Begins with examples; lines of at most 80 characters. Spec: conventions.md "CLI".
"""

from __future__ import annotations

import textwrap

from substrate.cli.options import OPTIONS, VERBS, Option

_EXAMPLES = """\
Examples:
  substrate -c 'pip install -e . && pytest -q'   run a command in a world
  substrate diff                                 what it changed
  substrate apply                                bring that to the host
  substrate run -- make -j2 test                 run a program, no shell between

"""
_FORMS = """\
Usage:
  substrate [OPTIONS] -c TEXT [ARG0 ARGS...]     a command text
  substrate [OPTIONS] -f FILE [ARGS...]          a script
  substrate [OPTIONS] < SCRIPT                   a script on standard input
  substrate [OPTIONS]                            on a terminal: a shell in a world (`:help` there)
  substrate run [OPTIONS] -- CMD ARGS...         a program
  substrate VERB ...                             see below

A command runs in the current world of the directory (of its git repository): a
copy-on-write view of the host. What it changes stays there until `substrate apply` or
`substrate discard`. The shell's own options (-e, -l, -o pipefail, --norc ...) go to the
shell, in the order in which bash takes them.

"""
_STATUS = """\
Exit status of a run: the command's own; 128+N for signal N; 124 time was up; 125 substrate
itself failed; 126 may not be run; 127 not found; 2 a wrong call. Of another verb: 0 yes or
done, 1 no, 2 a wrong call, 3 the input cannot be used, 4 (trace verify) below what was
required.
"""


def describe_options(options: tuple[Option, ...] = OPTIONS) -> str:
    """The options as a list for a terminal, each with its variable."""
    lines = []
    for option in options:
        left = f"  {option.shown()}"
        text = textwrap.wrap(option.text, 58) or [""]
        if option.sets is not None:
            variable = f"{option.variable}={option.sets}"
        else:
            variable = option.variable
        text += [f"[{variable}]"] if len(text[-1]) + len(variable) > 55 else []
        if not text[-1].startswith("["):
            text[-1] += f" [{variable}]"
        if len(left) > 28:
            lines.append(left)
            left = ""
        lines.append(f"{left:<29} {text[0]}")
        lines += [f"{'':<29} {more}" for more in text[1:]]
    return "\n".join(lines) + "\n"


def _describe_verbs() -> str:
    return "".join(f"  {name:<12} {text}\n" for name, text in VERBS.items())


ROOT_HELP = (
    _EXAMPLES
    + _FORMS
    + "Options (before the command), with the variable that does the same:\n"
    + describe_options()
    + "\nVerbs (`substrate VERB --help`):\n"
    + _describe_verbs()
    + "\n"
    + _STATUS
)
