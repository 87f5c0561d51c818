"""Run a recorded command again and compare. Reads the record, runs in worlds."""

if __name__ != "substrate.replay":
    raise ImportError(
        "the folder 'replay' is the package 'substrate.replay'; import it by that name"
    )
