"""The stub on PATH and its deployment."""

if __name__ != "substrate.shim":
    raise ImportError("the folder 'shim' is the package 'substrate.shim'; import it by that name")
