"""Worlds: copy-on-write files, namespaces, limits and hardening (it does not know telemetry)."""

if __name__ != "substrate.world":
    raise ImportError("the folder 'world' is the package 'substrate.world'; import it by that name")
