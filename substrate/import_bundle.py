"""Nothing: where its bytecode would lie, `import_cache` keeps the code of all other modules.

Never imported. It is here so that the file has a name that installers know as ours.
"""
