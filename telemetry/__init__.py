"""The record: trace format, chain, writer, reader, verifier (it does not know worlds)."""

if __name__ != "substrate.telemetry":
    raise ImportError(
        "the folder 'telemetry' is the package 'substrate.telemetry'; import it by that name"
    )
