"""The interactive shell: a prompt, and each line as a command of its own (shell.md §2)."""
