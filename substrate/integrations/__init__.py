"""What joins substrate to agents: their hooks (install, status, uninstall) and what these report.

Not the shell that agents are given (cli, shell, shim). Spec: shell.md §4.
"""
