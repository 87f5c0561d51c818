"""Whether a command is whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.shell.reader import what_is_open

CASES = [
    ("echo hi", ""),
    ("", ""),
    ("echo 'a", "quote"),
    ('echo "a', "quote"),
    ('echo "a"', ""),
    ("if true", "compound"),
    ("if true; then echo; fi", ""),
    ("for i in 1 2; do", "compound"),
    ("for i in 1 2; do echo $i; done", ""),
    ("for ((i=0;i<3;i++)); do echo; done", ""),
    ("while read x; do echo; done < <(ls)", ""),
    ("case x in a) echo;; esac", ""),
    ("case x in a) echo;;", "compound"),
    ("case x in\na)\necho;;\n(b|c) x;;\nesac", ""),
    ("f() {", "compound"),
    ("f() { echo; }", ""),
    ("f ()\n", "compound"),
    ("f () \n{ echo; }", ""),
    ("function g {", "compound"),
    ("function g { :; }", ""),
    ("cat <<X", "heredoc"),
    ("cat <<X\na\n", "heredoc"),
    ("cat <<X\na\nX", ""),
    ("cat <<'X'\na\nX\n", ""),
    ("cat <<-X\n\ta\n\tX", ""),
    ("echo a |", "operator"),
    ("echo a &&", "operator"),
    ("a=(1 2", "compound"),
    ("a=(1 2)", ""),
    ("echo $(ls", "compound"),
    ("echo $(ls)", ""),
    ("echo ${x", "quote"),
    ("echo ${x:-'}'}", ""),
    ("echo `ls", "quote"),
    ("echo a \\", "escape"),
    ("echo a \\\n", "escape"),
    ("echo a \\\n b", ""),
    ("[[ -f x", "compound"),
    ("[[ -f x && ( a == b ) ]]", ""),
    ("[[ a =~ (b|c) ]]", ""),
    ("(( x = 1 ))", ""),
    ("(( x = 1", "compound"),
    ("( ls", "compound"),
    ("( ls )", ""),
    ("echo # it's", ""),
    ("echo a#'b", "quote"),
    ("{ echo; }", ""),
    ("{ echo", "compound"),
    ("echo {", ""),
    ("echo if", ""),
    ("if [ 1 ]; then\nif x; then y; fi\nfi", ""),
    ("echo $((1+(2*3)))", ""),
    ('echo "$(echo "x")"', ""),
    ("x=$(cat <<E\nhi\nE\n)", ""),
    ("echo !(a|b)", ""),
    ("select x in a b; do break; done", ""),
    ("cat <<A <<B\n1\nA\n2\nB", ""),
    ("cat <<A <<B\n1\nA\n2\n", "heredoc"),
    ("until false; do :; done", ""),
    ("echo 'a\nb'", ""),
    ("! true", ""),
    ("time { ls; }", ""),
    ("for f in *; do if x; then case y in z) ;; esac; fi; done", ""),
    ("echo ${#a[@]} ${a[@]}", ""),
    ("echo $'it\\'s'", ""),
    ("echo $#; ls", ""),
    ("ls; #x", ""),
    ("a &", ""),
    ("a & b", ""),
    ("x=( $(ls) [1]=2 \n # no ' here\n)", ""),
    ("for x; do echo; done", ""),
    ("for x\nin a\ndo\necho\ndone", ""),
    ("&&", "operator"),
    ("case $x in *) echo 'a)';; esac; echo", ""),
    ("coproc { cat; }", ""),
    ("a=b if true; then", ""),
    ("echo <<<'x'", ""),
    ("cat < f > g 2>&1 &> h", ""),
    ("echo (", ""),
    ("for ((i=0; i<3; i++)); do echo $i", "compound"),
    ("f() ( cd /; pwd )", ""),
]


@pytest.mark.parametrize(("text", "open_"), CASES)
def test_what_is_open(text: str, open_: str) -> None:
    assert what_is_open(text) == open_


@given(st.text(alphabet="ab'\"\\`$(){}[]<>|&;#\n \t=!ifdone", max_size=60))
def test_any_text_comes_to_an_end(text: str) -> None:
    assert what_is_open(text) in ("", "quote", "heredoc", "compound", "operator", "escape")


def test_a_deep_or_a_long_text_is_no_burden() -> None:
    assert what_is_open("$(" * 5000) == "compound"
    assert what_is_open("${" * 5000) == "quote"
    assert what_is_open("x=(" + "(" * 5000) == "compound"
    assert what_is_open("((" * 20000) == "compound"
    assert what_is_open("echo " + "a" * 200_000) == ""
