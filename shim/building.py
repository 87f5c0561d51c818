"""How the stub is built, and installed as the command `substrate`: setuptools' `build_ext` and `build_scripts`.

Named in pyproject.toml (cmdclass) and used by nothing else. The stub is a program instead of a library. Statically linked where the C library
can be, since a dynamic one costs a shim half of its time; else as the compiler likes. Like any other
extension here it is optional: without a compiler the install goes on, and shims are Python's
(stub.py), and `substrate` is the script that is `substrate-python` otherwise.
Source: setuptools.command.build_ext, build_scripts.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

try:
    from setuptools.command.build_scripts import build_scripts
except ImportError:  # older ones leave it to distutils
    from distutils.command.build_scripts import build_scripts

if TYPE_CHECKING:
    from setuptools import Extension

NAME = "substrate.shim._stub"
PROGRAM = "substrate-stub"
_WAYS: tuple[list[str], ...] = (["-static-pie"], ["-static"], ["-pie"], [])


class BuildStub(build_ext):  # type: ignore[misc, unused-ignore]
    """`build_ext`, which makes a program of the one extension that is one."""

    def get_ext_filename(self, fullname: str) -> str:
        """Where it lies in its package."""
        if fullname.rpartition(".")[2] == NAME.rpartition(".")[2]:
            return os.path.join(*fullname.split(".")[:-1], PROGRAM)
        return str(super().get_ext_filename(fullname))

    def build_extension(self, ext: Extension) -> None:
        """Compiles, links, takes away what only a debugger reads."""
        if ext.name != NAME:
            super().build_extension(ext)
            return
        target = self.get_ext_fullpath(ext.name)
        objects = self.compiler.compile(
            ext.sources,
            output_dir=self.build_temp,
            extra_postargs=ext.extra_compile_args,
            depends=ext.depends,
        )
        for number, way in enumerate(_WAYS, 1):
            try:
                self.compiler.link_executable(
                    objects,
                    os.path.basename(target),
                    output_dir=os.path.dirname(target),
                    extra_postargs=[*way, "-s", "-Wl,-z,relro,-z,now,-z,noexecstack"],
                )
                return
            except (LinkError, CompileError):
                if number == len(_WAYS):
                    raise


class BuildScripts(build_scripts):  # type: ignore[misc, unused-ignore]
    """`build_scripts`, with the script under a second name, and the program in its place."""

    def run(self) -> None:
        """After build_ext, as in every build."""
        super().run()
        script = os.path.join(self.build_dir, "substrate")
        shutil.copy2(script, script + "-python")
        program = self.get_finalized_command("build_ext").get_ext_fullpath(NAME)
        if os.path.isfile(program):
            shutil.copyfile(program, script)
