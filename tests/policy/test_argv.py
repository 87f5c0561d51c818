"""Reading an argv by its program's table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.policy.argv import Reading, read
from substrate.policy.program_tables import TABLES
from substrate.policy.programs import TABLE_OF, find_table
from tests.policy.rule_sets import words


def reading_of(line: str) -> Reading:
    argv = words(line)
    table = find_table(argv[0])
    assert table is not None
    return read(argv, table)


def shown(reading: Reading) -> tuple[dict[str, list[str]], list[str]]:
    flags = {flag.decode(): [v.decode() for v in values] for flag, values in reading.flags.items()}
    return flags, [operand.decode() for operand in reading.operands]


@pytest.mark.parametrize(
    "line",
    [
        "rm -r -f x",
        "rm -rf x",
        "rm -fr x",
        "rm -R -f x",
        "rm --recursive --force x",
        "rm --rec --for x",
        "rm x -rf",
        "rm -f -- x -r".replace("-- x -r", "-r -- x"),
    ],
)
def test_one_set_of_flags_however_it_is_spelled(line):
    assert shown(reading_of(line)) == ({"-f": [], "-r": []}, ["x"])


@pytest.mark.parametrize(
    ("line", "flags", "operands"),
    [
        ("rm -- -rf", {}, ["-rf"]),
        ("cp -t /etc a", {"-t": ["/etc"]}, ["a"]),
        ("cp -t/etc a", {"-t": ["/etc"]}, ["a"]),
        ("cp --target-directory=/etc a", {"-t": ["/etc"]}, ["a"]),
        ("cp --target /etc a", {"-t": ["/etc"]}, ["a"]),
        ("chmod -R 777 x", {"-R": []}, ["777", "x"]),
        (
            "git -C x -c a=b push -f o m",
            {"-C": ["x"], "-c": ["a=b"], "^-f": []},
            ["push", "o", "m"],
        ),
        ("git commit -am text", {"^-a": [], "^-m": ["text"]}, ["commit"]),
        ("git --git-dir x status", {"--git-dir": ["x"]}, ["status"]),
        ("curl -sSLo f https://x", {"-s": [], "-S": [], "-L": [], "-o": ["f"]}, ["https://x"]),
        ("curl -X POST --data-raw x u", {"-X": ["POST"], "--data-raw": ["x"]}, ["u"]),
        ("wget -qO- u", {"-q": [], "-O": ["-"]}, ["u"]),
        ("ssh -p 22 -i k host ls -l", {"-p": ["22"], "-i": ["k"]}, ["host", "ls", "-l"]),
        ("ssh host -l me ls", {"-l": ["me"]}, ["host", "ls"]),
        ("scp -P 22 a h:b", {"-P": ["22"]}, ["a", "h:b"]),
        ("rsync -avz --delete -e ssh a h:", None, ["a", "h:"]),
        ("npm i -D --registry x foo", {"-D": [], "--registry": ["x"]}, ["install", "foo"]),
        ("npm -w pkg publish", {"-w": ["pkg"]}, ["publish"]),
        ("pnpm -C x publish --tag t", {"-C": ["x"], "--tag": ["t"]}, ["publish"]),
        ("yarn --cwd x add foo", {"--cwd": ["x"]}, ["add", "foo"]),
        ("pip install -r f -i u", {"-r": ["f"], "-i": ["u"]}, ["install"]),
        ("pip3 --proxy p install x", {"--proxy": ["p"]}, ["install", "x"]),
        ("python3 -m pip install x", {"-m": ["pip"]}, ["install", "x"]),
        ("python3.11 -Wd -c x -c y", {"-W": ["d"], "-c": ["x"]}, ["-c", "y"]),
        ("python -u s.py -c", {"-u": []}, ["s.py", "-c"]),
        ("node -e x a", {"-e": ["x"]}, ["a"]),
        ("uv run -p 3.11 pytest -x", {"-p": ["3.11"]}, ["run", "pytest", "-x"]),
        ("uv pip install -r f", {"-r": ["f"]}, ["pip", "install"]),
        ("cargo +nightly b --release -p x", {"-r": [], "-p": ["x"]}, ["build"]),
        ("go test -run X -race ./...", {"-run": ["X"], "-race": []}, ["test", "./..."]),
        ("make -C d -j 4 t", {"-C": ["d"], "-j": ["4"]}, ["t"]),
        ("make -j4 t", {"-j": ["4"]}, ["t"]),
        ("make -j t", {"-j": []}, ["t"]),
        ("docker --context x run -it --rm img ls -l", None, ["run", "img", "ls", "-l"]),
        ("docker container run -v a:b img", {"^-v": ["a:b"]}, ["run", "img"]),
        ("docker compose -f x down -v", {"^-f": ["x"], "^^-v": []}, ["compose", "down"]),
        ("podman exec -it c sh -c x", {"^-i": [], "^-t": []}, ["exec", "c", "sh", "-c", "x"]),
        ("kubectl -n x delete pod y", {"-n": ["x"]}, ["delete", "pod", "y"]),
        ("kubectl delete pod y -n x", {"-n": ["x"]}, ["delete", "pod", "y"]),
        ("systemctl --user -H h stop x", {"--user": [], "-H": ["h"]}, ["stop", "x"]),
        ("apt-get -y -o A=b install x", {"-y": [], "-o": ["A=b"]}, ["install", "x"]),
        ("dpkg --install x.deb", {"-i": []}, ["x.deb"]),
        ("sudo -u root -E rm -rf x", {"-u": ["root"], "-E": []}, ["rm", "-rf", "x"]),
        ("env -i -u A B=c ls -l", {"-i": [], "-u": ["A"]}, ["B=c", "ls", "-l"]),
        ("xargs -n1 -I{} rm {} -f", {"-n": ["1"], "-I": ["{}"]}, ["rm", "{}", "-f"]),
        ("tar xzf a.tgz -C /x", {"-x": [], "-z": [], "-f": ["a.tgz"], "-C": ["/x"]}, []),
        ("tar -xzf a.tgz b", {"-x": [], "-z": [], "-f": ["a.tgz"]}, ["b"]),
        ("sed -i.bak -e s/a/b/ f", {"-i": [".bak"], "-e": ["s/a/b/"]}, ["f"]),
        ("perl -lne x f", {"-l": [], "-n": [], "-e": ["x"]}, ["f"]),
        ("ruby -rx -e y", {"-r": ["x"], "-e": ["y"]}, []),
        (
            "bash -euo pipefail -c text",
            {"-e": [], "-u": [], "-o": ["pipefail"], "-c": []},
            ["text"],
        ),
        ("bash -c -l text a", {"-c": [], "-l": []}, ["text", "a"]),
        ("zsh +o x -c text", None, ["text"]),
        ("gh -R a/b pr create -t x", {"-R": ["a/b"], "-t": ["x"]}, ["pr", "create"]),
        ("twine upload -r x d", {"-r": ["x"]}, ["upload", "d"]),
        ("gem pus x.gem --host y", {"--host": ["y"]}, ["push", "x.gem"]),
        ("docker run --network host x", {"^--network": ["host"]}, ["run", "x"]),
        ("docker run --net host x", {"^--network": ["host"]}, ["run", "x"]),
        ("curl --data-ascii a --data b u", {"-d": ["a", "b"]}, ["u"]),
        ("make --makefile a --file b x", {"-f": ["a", "b"]}, ["x"]),
        ("pip install --pypi-url a --index-url b x", {"-i": ["a", "b"]}, ["install", "x"]),
        ("find . -name x -delete", {"-name": ["x"], "-delete": []}, ["."]),
        ("dd if=a of=b", {}, ["if=a", "of=b"]),
        ("tee -a f", {"-a": []}, ["f"]),
        ("ln -sf a b", {"-s": [], "-f": []}, ["a", "b"]),
        ("chown -R a:b x", {"-R": []}, ["a:b", "x"]),
        ("busybox", None, None),
    ],
)
def test_programs(line, flags, operands):
    if operands is None:  # what it runs is unwrapped instead (test_decide_wrappers.py)
        assert find_table(words(line)[0]) is None
        return
    found = shown(reading_of(line))
    assert found[1] == operands
    if flags is not None:
        assert found[0] == flags
    assert reading_of(line).unknown == []


def test_an_unknown_long_option_may_have_a_value():
    reading = reading_of("git --new-option value push")
    assert reading.operands == [b"value", b"push"]
    assert reading.other is not None and reading.other.operands == [b"push"]
    assert reading_of("git --new-option=value push").other.operands == [b"push"]
    assert reading_of("git -C value push").other is None


def test_an_abbreviation_of_two_options_is_unknown():
    assert reading_of("rm --no x").unknown == [b"--no"] or reading_of("rm --no x").flags
    assert reading_of("cp --s a b").unknown == [b"--s"]


def test_every_table_can_be_made():
    assert {find_table(name) is not None for name in TABLE_OF} == {True}
    for key in TABLES:
        for name in key.split("|"):
            table = find_table(name.encode())
            assert table is not None
            assert table.valued <= set(table.spellings)
            assert not table.valued & table.optional, name
            tables = [table, *(table.commands or {}).values()]
            odd = [spelling for one in tables for spelling in one.flags if spelling[-1:] in b"=?"]
            assert not odd, (name, odd)


def test_the_docs_name_every_table():
    text = (Path(__file__).parents[2] / "docs/reference/matching.md").read_text()
    named = set(re.findall("`([^`]+)`", text.partition("## Tables")[2]))
    assert named == {name.decode() for name in TABLE_OF}


NAMES = st.sampled_from(sorted(TABLE_OF))
WORD = st.one_of(
    st.sampled_from(
        [b"-rf", b"--", b"-", b"--x=y", b"-c", b"push", b"run", b"+x", b"**", b"*", b""]
    ),
    st.binary(max_size=6),
)


@given(NAMES, st.lists(WORD, max_size=12))
def test_reading_never_raises_and_is_the_same_twice(name, rest):
    table = find_table(name)
    one, two = read((name, *rest), table), read((name, *rest), table)
    assert (one.flags, one.operands, one.unknown) == (two.flags, two.operands, two.unknown)
    assert 0 <= one.first_operand <= 1 + len(rest)


@given(NAMES, st.lists(WORD, max_size=12))
def test_no_word_is_lost(name, rest):
    """Each word is a flag, a value or an operand; none is made up."""
    reading = read((name, *rest), find_table(name))
    count = len(reading.operands) + sum(1 + len(values) for values in reading.flags.values())
    assert count <= sum(1 + len(word) for word in rest)


FLAGS = st.permutations(["-r", "-f", "-v", "--one-file-system", "-I"])


@given(FLAGS, st.booleans())
def test_the_order_of_flags_says_nothing(flags, behind):
    line = ["rm", "x", *flags] if behind else ["rm", *flags, "x"]
    expected = reading_of("rm -r -f -v --one-file-system -I x")
    found = reading_of(" ".join(line))
    assert (found.flags, found.operands) == (expected.flags, expected.operands)


def test_many_words_are_read_in_their_number():
    table = find_table(b"git")
    steps = read((b"git", b"-c", b"a=b", b"commit", *[b"-avm"] * 50_000), table)
    assert len(steps.flags[b"^-m"]) == 25_000
