"""make, cmake, ccache and cargo in worlds (plain_copy.py).

What is built in a world must count as built on the host too: a second build there does
nothing.
"""

import os
import shutil
import subprocess

import pytest

from tests.system.plain_copy import Place, anything, need

_C = r"""
cat > Makefile <<'END'
CFLAGS = -O1 -g
OBJECTS = build/main.o build/a.o build/b.o
all: program gen.h
program: $(OBJECTS) lib.a
	@echo LINK
	$(CC) -o $@ $(OBJECTS) lib.a
lib.a: build/c.o
	rm -f $@; ar rcs $@ $^
build/%.o: %.c gen.h | build
	$(CC) $(CFLAGS) -MMD -c -o $@ $<
build:
	mkdir $@
gen.h: gen.txt
	sed 's/^/#define VALUE /' $< > $@.tmp && mv $@.tmp $@
-include build/*.d
END
echo 7 > gen.txt
echo '#include <stdio.h>
int a(void), b(void), c(void); int main(void) { printf("%d\n", a() + b() + c()); return 0; }' > main.c
for n in a b c; do printf '#include "gen.h"\nint %s(void) { return VALUE; }\n' $n > $n.c; done
touch -d @1500000000 *.c Makefile gen.txt
"""


@pytest.mark.parametrize("built", [False, True], ids=["from the sources", "built on the host"])
def test_make_builds_once(every_caller, built):
    need("make", "gcc", "ar")
    after = Place(
        caller=every_caller,
        setup=_C + ("make -s -j2\n" if built else ""),
        afterwards=("make -q && make -j2 | grep -q 'Nothing to be done' && ./program",),
    ).compare(
        "make -s -j2; ./program; make; make -q",
        # the same object after a comment was added, another after a change
        "echo '/* a comment */' >> a.c; make -s -j2; make -q; ./program",
        "sed -i 's/VALUE/VALUE * 2/' b.c; make -s -j2; make -q; ./program",
        "echo 8 > gen.txt; make -s -j2; make -q; ./program; strip program; touch program; make -q",
        "rm -rf build/a.o lib.a; make -s; make -q; ./program",
    )
    assert "build/main.d" in after


def test_cmake_out_of_the_source(caller):
    need("cmake", "gcc", "make")
    Place(
        caller=caller,
        setup=_C
        + """
        rm Makefile; echo '#define VALUE 7' > gen.h; cat > CMakeLists.txt <<'END'
cmake_minimum_required(VERSION 3.13)
project(habit C)
add_library(parts STATIC a.c b.c c.c)
add_executable(program main.c)
target_link_libraries(program parts)
enable_testing()
add_test(NAME runs COMMAND program)
install(TARGETS program DESTINATION bin)
END
        """,
        readers=((r"out/.*\.(log|cmake|bin|out|make|txt)", anything),),
        absent=r"out/(Testing/.*|CMakeFiles/[0-9.]+/.*|.*cmTC_.*|.*progress.*)",
        varying=((rb"[0-9.]+ sec", b"TIME sec"),),
        afterwards=(
            "cmake --build out | grep -c Building | grep -qx 0 && ./out/program",
            "cd out && ctest -Q",
        ),
    ).compare(
        "cmake -S . -B out -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=$PWD/installed >/dev/null",
        "cmake --build out -j2 >/dev/null; cd out; ctest -Q; ./program",
        "echo '#define VALUE 9' > gen.h; cmake --build out | grep -c Building; ./out/program",
        "cmake --install out >/dev/null; ./installed/bin/program; cmake --build out --target clean; ls out",
        "cmake --build out -j2 >/dev/null; ./out/program",
    )


def test_ccache_that_links_from_its_cache(caller):
    """The object and the cache's copy are one file, on the host too."""
    need("ccache", "gcc")
    after = Place(
        caller=caller,
        setup="for n in 1 2 3; do echo \"int f$n(void) { return $n; }\" > f$n.c; done",
        prelude="export CCACHE_DIR=$PWD/cache CCACHE_HARDLINK=1 CCACHE_NOCPP2=1\n",
        readers=((r"cache/.*", anything),),
        absent=r"cache(/.*)?",
        varying=((rb"(?s)Local storage.*", b""),),
    ).compare(
        "for n in 1 2 3; do ccache gcc -c f$n.c; done; ccache -s | grep -c Hits",
        "rm *.o; for n in 1 2 3; do ccache gcc -c f$n.c; done; ccache -C >/dev/null; ls",
        """
        for n in 1 2 3; do ccache gcc -c f$n.c; done; stat -c %h f?.o; rm f1.o
        ccache gcc -c f1.c; stat -c %h f1.o
        """,
    )  # fmt: skip
    assert {after[f"f{n}.o"]["same"].partition("/")[0] for n in (1, 2, 3)} == {"cache"}


# --- cargo

_CARGO = r"""
mkdir -p app/src app/tests lib/src
cat > Cargo.toml <<'END'
[workspace]
members = ["app", "lib"]
resolver = "1"
END
for n in app lib; do printf '[package]\nname = "%s"\nversion = "0.1.0"\nedition = "2021"\n' $n > $n/Cargo.toml; done
printf '[dependencies]\nlib = { path = "../lib" }\n' >> app/Cargo.toml
echo 'fn main() { println!("{}", lib::value() + include_str!("../value.txt").trim().parse::<u32>().unwrap()); }' > app/src/main.rs
echo 1 > app/value.txt
echo 'fn main() { println!("cargo:rerun-if-changed=value.txt"); std::fs::write(std::env::var("OUT_DIR").unwrap() + "/made", "x").unwrap(); }' > app/build.rs
printf 'pub fn value() -> u32 { 40 }\n#[cfg(test)] mod tests { #[test] fn is() { assert!(super::value() > 1); } }\n' > lib/src/lib.rs
echo '#[test] fn works() { assert_eq!(1 + 1, 2); }' > app/tests/works.rs
"""


@pytest.fixture(scope="session")
def toolchain(base):
    """The directory of cargo and rustc, where every user can run them. Those below root's home
    are linked to a place that everybody can enter."""
    own = os.path.expanduser("~/.cargo/bin/rustc")
    for rustc in (
        shutil.which("rustc", path="/usr/local/bin:/usr/bin"),
        shutil.which("rustc"),
        own,
    ):
        if rustc is not None and os.path.exists(rustc):
            break
    else:
        need("cargo", "rustc")
    done = subprocess.run([rustc, "--print", "sysroot"], capture_output=True, text=True, check=True)
    root = done.stdout.strip()
    if not root.startswith(os.path.expanduser("~") + "/"):
        return os.path.dirname(rustc)
    copy = base / "rust"
    for path in ("bin", "lib"):
        (copy / path).mkdir(parents=True)
    (libraries,) = (os.path.join(root, "lib", n) for n in ["rustlib"])
    targets = [os.path.join(libraries, n) for n in os.listdir(libraries) if "linux" in n]
    shared = [os.path.join(root, "lib", n) for n in os.listdir(f"{root}/lib") if ".so" in n]
    (copy / "lib" / "rustlib").mkdir()
    for paths, to in (
        ([f"{root}/bin/cargo", f"{root}/bin/rustc"], copy / "bin"),
        (shared, copy / "lib"),
        (targets, copy / "lib" / "rustlib"),
    ):
        linked = subprocess.run(["cp", "-al", *paths, to], stderr=subprocess.DEVNULL)
        if linked.returncode:  # another filesystem
            subprocess.run(["cp", "-a", *paths, to], check=True)
    return copy / "bin"


def test_cargo_builds_tests_and_knows_what_is_fresh(caller, toolchain):
    fresh = "test $(cargo build -v 2>&1 | grep -cE 'Compiling|Dirty') = 0 && ./target/debug/app"
    Place(
        caller=caller,
        setup=_CARGO,
        prelude=f"export PATH={toolchain}:$PATH CARGO_HOME=$PWD/.cargo-home CARGO_NET_OFFLINE=true\n",
        readers=((r"(target|\.cargo-home)/.*", anything),),
        absent=r"target/debug/incremental/.*|\.cargo-home(/.*)?",
        varying=((rb"in [0-9.]+s", b"in TIME"), (rb"-[0-9a-f]{16}", b"-HASH")),
        afterwards=(fresh,),
        timeout=300,
    ).compare(
        "cargo build -q; ./target/debug/app; " + fresh,
        "cargo test -q 2>/dev/null | grep -c 'test result: ok'",
        "sed -i s/40/41/ lib/src/lib.rs; echo 2 > app/value.txt; cargo build -q; ./target/debug/app; "
        + fresh,
        "cargo clean -q -p lib; cargo build -q; ./target/debug/app",
        "cargo clean -q; ls; cargo build -q; " + fresh,
    )
