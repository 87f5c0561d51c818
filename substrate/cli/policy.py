"""`substrate policy check|explain|learn|init|trust|test|show`: what may be run here, and why.

Each verb has a file of its own. Spec: policy.md §5.
"""

from __future__ import annotations

import click

from substrate.cli.policy_check import check_command
from substrate.cli.policy_explain import explain_command
from substrate.cli.policy_init import init_command
from substrate.cli.policy_learn import learn_command
from substrate.cli.policy_show import show_command
from substrate.cli.policy_test import test_command
from substrate.cli.policy_trust import trust_command
from substrate.cli.verb import VerbGroup


@click.group("policy", cls=VerbGroup)
def command() -> None:
    """Examples:
      substrate policy check -- git push origin main
      substrate policy init
      substrate policy explain last

    Says what may be run, whom it may reach and what it may write; and why. Policies come from a
    built-in profile, /etc/substrate/policy.toml, ~/.config/substrate/policy.toml and the
    project's .substrate/policy.toml, which may only tighten until it is trusted.

    In this version a policy is only read and explained: no command is held to one. What holds a
    world in is said by `substrate doctor` and --allow, --deny, --hide, --limit of a run."""


for each in (
    *(check_command, explain_command, show_command, init_command),
    *(learn_command, test_command, trust_command),
):
    command.add_command(each)
