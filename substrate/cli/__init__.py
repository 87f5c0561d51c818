"""The command line: parsing, then a pure run, then a renderer."""
