"""Substrate: a shell and command shim that runs commands in worlds and keeps a verifiable record."""

__version__ = "0.1.0"
