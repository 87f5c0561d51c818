"""Ask the record what caused what. Reads the record only."""

if __name__ != "substrate.graph":
    raise ImportError("the folder 'graph' is the package 'substrate.graph'; import it by that name")
