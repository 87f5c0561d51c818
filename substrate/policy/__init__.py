"""The broker: what a policy says, and what it decides of a command (policy.md). It enforces nothing."""
