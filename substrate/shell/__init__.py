"""The shell that a person types into: lines, their state, and what is drawn around them (shell.md §2)."""
