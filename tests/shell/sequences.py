"""Lines that people and agents type one after the other, whose later ones depend on the earlier.

Blocks are parted by lines of `--`. `pairs` makes more of them: everything that sets a shell up
with everything that shows it."""

ONES = r"""
echo hi
--
x=5
echo $x
--
export FOO=bar
env | grep ^FOO
FOO=baz
env | grep ^FOO
unset FOO
env | grep ^FOO || echo none
--
cd /usr
pwd
cd -
pwd
echo $OLDPWD
--
mkdir -p a/b
cd a/b
pwd | sed 's|.*/a|a|'
cd ..
basename "$PWD"
--
ln -s /usr/bin link
cd link
basename $PWD
pwd -P
cd -P .
basename $PWD
--
pushd /usr
pushd /usr/bin
dirs
popd
dirs -v
popd
--
pushd -n /tmp
dirs -l | wc -w
popd
--
a=(1 2 "3 4")
echo "${a[2]}" ${#a[@]}
a[7]=x
declare -p a
unset a[0]
declare -p a
--
declare -A m=([k]=v ["a b"]="c d" [x]="]=")
echo "${m[a b]}" "${#m[@]}"
m[n]=$'new\nline'
printf '%q\n' "${m[n]}" "${m[x]}"
--
declare -i n=5
n=n+2
echo $n
n+=3
echo $n
--
declare -u up=abc
declare -l low=ABC
up=def low=DEF
echo $up $low
--
declare -r ro=1
ro=2
echo $? $ro
unset ro
echo $ro
--
declare -n ref=target
target=7
echo $ref
ref=8
echo $target
declare -p ref
--
declare -ix num=3
bash -c 'echo $num'
num=num*4
bash -c 'echo $num'
--
declare -a empty=()
declare -A nothing
declare unsetvar
echo ${#empty[@]} ${#nothing[@]} "${unsetvar-unset}"
declare -p empty nothing unsetvar
--
f() { echo "f $1"; }
f a
export -f f
bash -c 'f b'
unset -f f
f c || echo gone
--
f() { local v=1; g; }
g() { echo "v=$v"; }
f
v=2
g
f
--
function with-dash { echo dash; }
with-dash
with.dot() { echo dot; }
with.dot
--
f() {
  cat <<END
doc $1
END
}
f one
declare -f f
f two
--
f() { case $1 in a|b) echo ab;; *) echo other;; esac; }
f a; f z
--
f() ( cd /; pwd )
f
pwd | wc -l
--
f() { return 7; }
f
echo $?
--
alias ll='echo listing'
ll
alias x='ll a '
x
unalias ll
ll || echo gone
--
alias e=echo g='e grep'
g this
type g
alias
--
alias ls='ls -d'
f() { ls /; }
f
f
declare -f f
--
shopt -s expand_aliases
alias say='echo said;'
say echo more
--
false
echo $?
--
(exit 42)
echo $?
echo $?
--
false | true | (exit 3)
echo "${PIPESTATUS[@]}"
echo "${PIPESTATUS[@]}"
--
true | false
echo $? ${PIPESTATUS[0]}
--
set -o pipefail
false | true
echo $?
--
echo one two three
echo $_
--
set -- a b "c d"
echo $# "$3"
shift
echo $# "$1"
set --
echo $#
--
set -- "" x
echo $# "[$1]"
--
set -u
echo ${nope-default}
echo $nope
echo after $?
set +u
echo [$nope]
--
set -f
echo *
set +f
--
set -C
echo 1 > file
echo 2 > file
cat file
echo 3 >| file
cat file
--
shopt -s nullglob
echo nothing*here
shopt -u nullglob
echo nothing*here
--
shopt -s extglob
touch a.c b.h
echo !(*.c|link)
f() { [[ $1 == +(a|b) ]] && echo yes; }
f abab
--
shopt -s globstar
mkdir -p p/q; touch p/q/r
echo p/**
--
shopt -s dotglob nocaseglob
touch .Hidden
echo *hidden
--
shopt -s nocasematch
[[ ABC == abc ]] && echo same
--
umask
umask 077
umask
touch f; stat -c %a f
--
trap 'echo got' USR1
kill -USR1 $$
trap -p USR1
kill -USR1 $$
trap - USR1
trap -p USR1
--
trap '' INT
trap -p INT
kill -INT $$; echo alive
--
trap 'echo err $?' ERR
false
true
(exit 3)
trap - ERR
false
--
trap 'echo err' ERR
f() { false; }
f
false || true
if false; then :; fi
--
trap 'echo bye' EXIT
echo still
exit 3
--
trap 'echo bye $?' EXIT
true
trap - EXIT
exit 4
--
trap 'echo bye $x' EXIT
x=5
echo last
exit
--
trap 'echo ret' RETURN
f() { :; }
declare -ft f
f
--
exit 9
echo never
--
false
exit
--
set -e
true
false
echo never
--
set -e
false || true
if false; then echo; fi
echo still
--
set -e
f() { false; echo inside; }
f && echo yes
echo more
f
echo never
--
echo ${nope:?message}; echo same line
echo next $?
--
readonly r=1
r=2; echo same
echo next $?
--
echo $(( 1 / 0 )); echo same
echo next $?
--
echo (
echo status $?
--
fi
echo status $?
--
if true
then
  echo multi
fi
--
for i in 1 2 3; do
  last=$i
done
echo $last
--
while read a b; do
  echo "$b-$a"
done <<END
1 2
3 4
END
echo $?
--
cat <<'END' | tr a-z A-Z
some $text
END
--
cat <<-END
	tabbed
	END
--
x=$(cat <<END
in
END
)
echo $x
--
echo "a
b"
echo 'c
d'
--
echo a \
  b
--
echo 'single "double"' "double 'single'" $'tab\there'
--
x='a  b   *'
echo "$x"
printf '[%s]' $x; echo
--
x=$'line\nline2\ttab\x01\x7f'
printf %q "$x"; echo
x+=more
printf %q "$x"; echo
--
x="quote's \"double\" \`back\` \$dollar \\ slash"
echo "$x"
echo "$x"
--
x='ünïcödé 日本語 🎉'
echo "$x" ${#x}
export x
printenv x
--
x=$'\xff\xfe bad utf8'
printf %s "$x" | od -An -tx1
printf %s "$x" | od -An -tx1
--
IFS=:
x=a:b:c
for p in $x; do echo $p; done
echo "${IFS}"
set -- $x
echo "$*"
--
IFS=
x='a b'
printf '[%s]' $x; echo
printf %q "$IFS"; echo
--
unset IFS
x='a b'
printf '[%s]' $x; echo
echo ${IFS-unset}
--
PATH=/bin
echo $PATH
unset PATH
echo ${PATH-none}
--
HOME=/usr
cd
pwd
echo ~
--
unset HOME
echo ${HOME-none}
--
CDPATH=/usr
cd bin
pwd
--
PS1='my> ' PS2='.. '
echo "$PS1$PS2"
--
LC_ALL=C
x='ü'
echo ${#x}
echo ${#x}
--
TZ=UTC
export TZ
date -d @0 +%H:%M
--
exec 3>file
echo $?
--
exec 2>/dev/null
echo fine
--
echo a; echo b >&2; echo c
--
echo x > f; cat < f
cat f f
--
{ echo a; echo b; } | wc -l
( x=sub; echo $x )
echo ${x-unset}
--
read x <<< "from here"
echo $x
read -r -a arr <<< "p q r"
echo ${arr[1]}
--
mapfile -t lines < <(printf '1\n2\n3\n')
echo ${#lines[@]} ${lines[2]}
--
printf -v out '%05d' 42
echo $out
--
getopts ab: opt -a
echo $opt $OPTIND
--
eval 'y=3; z=$((y+1))'
echo $y $z
--
source /dev/stdin <<< 'sourced=yes'
echo $sourced
--
echo 'v=from-file; g() { echo file-g; }' > lib.sh
. ./lib.sh
echo $v
g
--
time true 2>/dev/null
--
let n=3+4
echo $n
((n++))
echo $n
((n=0))
echo $? $n
--
[[ abc =~ a(b)c ]]
echo ${BASH_REMATCH[1]}
--
x=abcdef
echo ${x:1:3} ${x/b/B} ${x^^} ${x%f} ${x#a}
--
echo {1..5} {a,b}{c,d}
set +B
echo {1..3}
--
set -k
--
command -v echo
type cd
hash -r
--
: ${def:=value}
echo $def
--
unset nope
echo ${nope+set} ${nope-unset}
nope=
echo ${nope+set} ${nope:-empty}
--
builtin echo b
command echo c
--
builtin() { echo fake "$@"; }
builtin x
x=carried
echo $x
builtin y
unset -f builtin
builtin echo real
--
declare() { echo fake declare; }
x=1
declare y
echo $x
unset -f declare
declare -p x
--
printf() { echo fake printf; }
x=1
printf a
echo $x
--
set() { echo fake set; }
trap() { echo fake trap; }
unset() { echo fake unset; }
x=1
echo $x
set
--
eval() { echo fake eval; }
exit() { echo fake exit; }
x=3
eval foo
echo $x
--
echo() { printf 'my %s\n' "$*"; }
echo a
echo b
unset -f echo
echo c
--
cd() { builtin cd "$@" && echo moved; }
cd /usr
pwd
cd /tmp
--
alias declare='echo alias' builtin='echo alias' printf='echo alias' set='echo alias' trap='echo alias'
x=1
declare hi
echo $x
unalias -a
declare -p x
--
alias eval='echo alias' exit='echo alias' unset='echo alias' '[['='echo alias' cd='echo alias'
x=2
eval
cd
echo $x
--
alias if='echo keyword'
x=2
echo $x
unalias if
if true; then echo ok; fi
--
enable -n echo
enable -n
x=1
enable echo
echo $x
--
enable -n printf test
x=4
echo $x
enable -n
--
set -o posix
x=1
echo $x
shopt -o posix
set +o posix
shopt -o posix
--
POSIXLY_CORRECT=1
echo $POSIXLY_CORRECT
x=2
echo $x
unset POSIXLY_CORRECT
echo ${POSIXLY_CORRECT-no}
--
set -x
x=1
echo $x
set +x
[[ $- == *x* ]] || echo off
--
set -v
echo v
set +v
--
set -a
auto=exported
printenv auto
set +a
later=not
printenv later || echo no
--
set -E -T
shopt -o errtrace functrace
--
set -P
ln -s /usr l
cd l
pwd
--
set -o vi
shopt -o vi emacs
set -o emacs
shopt -o vi emacs
--
set -o noglob
echo [a-z]*
--
BASH_ENV=/nonexistent
export BASH_ENV
bash -c 'echo sub'
echo $BASH_ENV
--
readonly list=(1 2)
echo ${list[1]}
list+=(3)
echo ${#list[@]}
--
declare -x -r both=1
printenv both
declare -p both
--
foo=1 bar=2; echo $foo$bar
foo+=x
echo $foo
--
x=1; unset x; echo ${x-gone}
echo ${x-gone}
--
__private=1 _under=2
echo $__private $_under
--
A=1 Z=2 a=3 z=4
echo $A$Z$a$z
--
f() { declare -g glob=1; local -r loc=2; }
f
echo $glob ${loc-none}
--
coproc true; wait; echo $?
--
sleep 0 & wait; echo $?
--
wait
jobs
echo $?
--
ulimit -c 0
ulimit -c
--
echo $#
echo $LINENO | grep -c .
--
for x in 1 2; do for y in a b; do [ $y = b ] && continue 2; echo $x$y; done; done
echo $x $y
--
until [ ${i:-0} -ge 3 ]; do ((i++)); done
echo $i
--
case abc in
  a*) echo star ;;
  *) echo no ;;
esac
--
select_me() { echo "$@"; }
select_me if then fi
--
echo $((16#ff)) $((2**10)) $((1<4?5:6))
--
declare -a arr=([3]=c [1]=a)
echo "${!arr[@]}" "${arr[@]}"
echo "${!arr[@]}" "${arr[@]}"
--
declare -A q=(["it's"]=1 ['"']=2 ['$x']=3 [' ']=4 ['\']=5)
echo ${#q[@]} ${q["it's"]} ${q['"']} ${q['$x']} ${q[' ']} ${q['\']}
echo ${#q[@]} ${q["it's"]} ${q['"']} ${q['$x']} ${q[' ']} ${q['\']}
--
git() { echo "git $*"; }
git status
git commit -m "a b"
--
export A=1 B="two words" C=$'three\nlines'
printenv A B C
printenv A B C
--
export -n HOME
printenv HOME || echo not exported
echo $HOME | grep -c .
--
unset LANG
echo ${LANG-none}
printenv LANG || echo none
--
TERM=vt100
printenv TERM
--
SECONDS=100
[ $SECONDS -ge 100 ] && echo ok
--
DIRSTACK=x
echo fine
--
shopt -s checkwinsize cdspell cmdhist
shopt cdspell
--
shopt -s inherit_errexit lastpipe
shopt lastpipe
--
shopt -u sourcepath
shopt sourcepath
--
shopt -s xpg_echo
echo 'a\tb'
--
shopt -s failglob
echo no*such
echo next
--
complete -W 'a b' foo
echo ok
--
x="$(printf 'a\n\n')"
printf '[%s]' "$x"; echo
--
test -n "$x" || x=new
echo $x
--
true && echo yes || echo no
! true
echo $?
--
return 3
echo $?
--
break
echo $?
--
nosuchcommand
echo $?
--
/nonexistent/x
echo $?
--
/
echo $?
--
bash -c 'exit 5'
echo $?
--
bash -c 'kill -9 $$'
echo $?
--
command_not_found_handle() { echo "no $1"; return 88; }
zzz
echo $?
--
PROMPT_COMMAND=
echo set
--
trap 'n=$((n+1))' DEBUG
true
trap - DEBUG
[ "$n" -gt 0 ] && echo counted
unset n
--
x='$(touch hacked)'
echo "$x"
y='`touch hacked`'
echo "$y"
ls hacked 2>/dev/null || echo safe
--
f() { echo "'"; }
g() { echo '"'; }
h() { echo \\; }
f; g; h
f; g; h
--
alias q="echo \"it's\""
q
q
--
alias nl='echo a
echo b'
nl
nl
--
x=
y=""
echo ${x+set} ${y+set} ${zz+set}
--
export EMPTY=
printenv EMPTY | wc -l
printenv EMPTY | wc -l
--
function f { echo "${FUNCNAME[0]}"; }
f
--
f() { echo ${BASH_SOURCE[0]-none}; }
f | wc -l
--
a=1; b=2; { a=3; b=4; }; echo $a$b
echo $a$b
--
(a=5); echo ${a-none}
a=6 true; echo ${a-none}
a=7 eval 'echo $a'; echo ${a-none}
--
exec 5<<<"here"
echo opened
--
echo start; exit 0
--
exit 256
--
exit -1
--
exit abc
echo after
"""

_SETS = (
    "x=1", "export x='a b'", "declare -a x=(p q)", "declare -A x=([k]=v)", "declare -i x=7",
    "readonly x=r", "x() { echo fn; }", "alias x='echo aliased'", "set -- x y", "cd /usr/share",
    "set -u", "set -f", "shopt -s nullglob extglob", "umask 027", "IFS=,", "set -o noclobber",
    "trap 'echo usr' USR1", "set -o posix", "set +o hashall", "LC_ALL=C", "unset TERM",
    "pushd / >/dev/null", "POSIXLY_CORRECT=", "set -e", "x=$'\\n\\t\\'\\\"\\\\'",
    "declare -xu x=up", "shopt -u expand_aliases", "trap 'echo bye' EXIT", "set -b", "f() { x=2; }; f",
)  # fmt: skip
_SHOWS = (
    'echo "${x-unset}" "${x[@]-}" $#', "declare -p x; type -t x", 'echo "$*" "$PWD" "$OLDPWD"',
    "set +o | grep -v hist", "shopt | grep on", "umask; trap -p USR1", "x a; echo $?", "dirs; echo no*match",
    "printenv x TERM; x=4 printenv x", "x=9; echo $x; unset x; echo ${x-gone}",
    "false; echo next",
)  # fmt: skip


def blocks() -> list[str]:
    return [block.strip("\n") for block in ONES.split("\n--\n")]


def pairs() -> list[str]:
    return [f"{first}\n{then}" for first in _SETS for then in _SHOWS]
