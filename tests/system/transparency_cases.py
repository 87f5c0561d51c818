"""Command lines that must be the same to whoever calls them, with bash and with substrate.

`text` runs by `-c` unless `words` says otherwise. `outer` is a line of a surrounding bash, in
which `"$@"` is the command: redirections, closed streams, pipelines. Nothing here prints what
differs between two runs of bash itself (pids, times).
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    name: str
    text: str
    words: tuple[str, ...] = ()  # instead of ("-c", text)
    args: tuple[str, ...] = ()  # after the text
    outer: str = ""
    input: bytes | None = None
    cwd: str = "."
    env: dict[str, str] = field(default_factory=dict)
    ours: tuple[str, ...] = ()  # options of substrate only
    net: bool = False

    def command(self) -> tuple[str, ...]:
        return (*(self.words or ("-c", self.text)), *self.args)


#: makes the tree that every case starts in
TREE = r"""
mkdir -p dir/deep empty 'with space' $'new\nline' $'bad\xff' -- -dash
printf 'one\ntwo\nthree\n' > a.txt
printf 'b\n' > dir/b; printf 'deep\n' > dir/deep/file
printf 'hidden\n' > .hidden
printf '#!/bin/sh\necho "script $0 $# $*"\n' > script.sh; chmod 755 script.sh
printf 'echo no\n' > plain.sh; chmod 644 plain.sh
printf '#!/no/such/interpreter\n' > bad.sh; chmod 755 bad.sh
ln -s a.txt link; ln -s nowhere dangling; ln -s dir linkdir
printf 'hard\n' > h1; ln h1 h2
printf 'x' > 'with space/f'; printf 'y' > $'new\nline/f'; printf 'z' > $'bad\xff/f'
printf 'd' > -- ./-dash/f
head -c 100000 /dev/zero | tr '\0' 'q' > big
"""

LISTING = r"""find . -printf '%P|%y|%m|%U|%G|%l\0' | LC_ALL=C sort -z
tar --sort=name --mtime=@0 --numeric-owner -c . 2>/dev/null"""

_PYTHON_SERVER = r"""
import os, socket, sys, threading
kind, name = sys.argv[1], sys.argv[2]
family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
server = socket.socket(family)
server.bind(name if kind == "unix" else ("127.0.0.1", 0))
server.listen()
def serve():
    peer, _ = server.accept()
    peer.sendall(peer.recv(100).upper())
    peer.close()
threading.Thread(target=serve).start()
client = socket.socket(family)
client.connect(server.getsockname())
client.sendall(b"hello there")
print(client.recv(100))
"""

_PLAIN = [
    # --- statuses
    Case("true", "true"),
    Case("empty", ""),
    Case("exit-0", "exit 0"),
    Case("exit-1", "exit 1"),
    Case("exit-7", "exit 7"),
    Case("exit-124", "exit 124"),
    Case("exit-125", "exit 125"),
    Case("exit-126", "exit 126"),
    Case("exit-127", "exit 127"),
    Case("exit-128", "exit 128"),
    Case("exit-200", "exit 200"),
    Case("exit-255", "exit 255"),
    Case("exit-256", "exit 256"),
    Case("exit-negative", "exit -1"),
    Case("not-found", "no-such-command-at-all"),
    Case("not-found-path", "./no/such/path"),
    Case("not-executable", "./plain.sh"),
    Case("is-directory", "./dir"),
    Case("bad-interpreter", "./bad.sh"),
    Case("syntax-error", "if true; then"),
    Case("syntax-error-2", "echo a; )"),
    Case("errexit", "set -e; echo before; false; echo after"),
    Case("errexit-option", "echo before; false; echo after", words=("-e", "-c", "false; echo x")),
    Case("xtrace-option", "", words=("-x", "-c", "echo a; : b")),
    Case("nounset", "set -u; echo $not_there; echo after"),
    Case("pipefail", "set -o pipefail; false | true; echo $?"),
    Case("pipestatus", "true | false | exit 3 | true; echo ${PIPESTATUS[*]}"),
    Case("exec-replaces", "exec ./script.sh one two; echo never"),
    Case("exec-not-found", "exec no-such-thing; echo never"),
    Case("nested-bash", "bash -c 'bash -c \"exit 9\"; echo $?; exit 8'"),
    Case("nested-sh", "sh -c 'echo $0 $1' zero one"),
    Case("script-in-path", "PATH=$PWD:$PATH script.sh a 'b c'"),
    # --- signals
    Case("kill-self-term", "kill -TERM $$"),
    Case("kill-self-kill", "kill -KILL $$"),
    Case("kill-self-int", "kill -INT $$"),
    Case("kill-self-hup", "kill -HUP $$"),
    Case("kill-self-usr1", "kill -USR1 $$"),
    Case("kill-self-segv", "kill -SEGV $$"),
    Case("kill-self-abrt", "ulimit -c 0; kill -ABRT $$"),
    Case("kill-self-pipe", "kill -PIPE $$"),
    Case("kill-self-realtime", "kill -40 $$"),
    Case("child-status", "{ (kill -9 $BASHPID); } 2>/dev/null; echo $?"),
    Case("trap-exit", "trap 'echo bye $?' EXIT; exit 4"),
    Case("trap-term", "trap 'echo caught; exit 5' TERM; kill -TERM $$; echo no"),
    Case("trap-ignored", "trap '' TERM; kill -TERM $$; echo still here"),
    Case("trap-listing", "trap"),
    Case("trap-err", "trap 'echo err $LINENO' ERR; false; true"),
    Case("trap-debug", "trap 'echo + $BASH_COMMAND' DEBUG; x=1; echo $x"),
    Case("sigpipe-inside", "yes | head -2; echo ${PIPESTATUS[0]}"),
    Case("pipe-disposition", "grep -E 'Sig(Ign|Blk)' /proc/self/status"),
    # --- output
    Case("both-streams", "echo out; echo err >&2"),
    Case("printf-nul", r"printf 'a\0b\0c\n'"),
    Case("all-bytes", r"for i in {0..255}; do printf \\x$(printf %02x $i); done"),
    Case("binary-stderr", r"printf '\xff\xfe\0\x80' >&2"),
    Case("no-newline", "printf x; printf y >&2"),
    Case("one-megabyte", "head -c 1048576 /dev/zero | tr '\\0' 'm'"),
    Case("fifty-megabytes", "head -c 50000000 /dev/zero", outer='"$@" | sha256sum'),
    Case("both-big", "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2"),
    Case(
        "interleaved",
        "for i in {1..200}; do echo out $i; echo err $i >&2; done",
        outer='"$@" 2>&1',
    ),
    Case("dup-inside", "{ echo a; echo b >&2; } 2>&1"),
    Case("swap-streams", "{ echo a; echo b >&2; } 3>&1 1>&2 2>&3"),
    Case("to-dev-stdout", "echo one > /dev/stdout; echo two > /dev/stderr"),
    Case("to-dev-fd", "echo one > /dev/fd/1; echo two > /dev/fd/2; echo x 5>&1 >/dev/fd/5"),
    Case("proc-self-fd", "echo one > /proc/self/fd/1"),
    Case("which-fds", "ls /proc/self/fd | head -3"),
    Case("isatty", "for i in 0 1 2; do test -t $i; echo $?; done"),
    Case("stdout-to-file", "echo into; echo more", outer='"$@" > out.txt; cat out.txt; rm out.txt'),
    Case(
        "append-to-file",
        "echo b; echo c >&2",
        outer='echo a > o; "$@" >> o 2>&1; echo d >> o; cat o; rm o',
    ),
    Case("stdout-closed", "echo lost; echo $? >&2", outer='"$@" >&-'),
    Case("stderr-closed", "echo kept; echo lost >&2; echo $?", outer='"$@" 2>&-'),
    Case("all-closed", "exit 3", outer='"$@" <&- >&- 2>&-; echo $?'),
    Case("reader-goes", "yes; echo never", outer='"$@" | head -3; echo ${PIPESTATUS[0]}'),
    Case(
        "reader-gone-at-once",
        "sleep 0.1; echo into the void 2>/dev/null; echo $? >&2",
        outer='"$@" | true',
    ),
    Case("dev-full", "echo x > /dev/full"),
    Case("stdout-dev-full", "echo x; exit 3", outer='"$@" > /dev/null'),
    Case("tee-twice", "echo t | tee /dev/stderr"),
    # --- input
    Case("stdin-pipe", "cat; echo end", input=b"some\0input\n"),
    Case("stdin-big-pipe", "sha256sum", input=b"0123456789" * 300_000),
    Case("stdin-partial", "head -1", input=b"first\nsecond\n" * 1000),
    Case("stdin-unread", "echo ignoring", input=b"x" * 200_000),
    Case("stdin-read-builtin", "read a; read b; echo $b$a; cat", input=b"1\n2\n3\n4\n"),
    Case("stdin-null", "cat; echo $?", outer='"$@" < /dev/null'),
    Case("stdin-closed", "cat; echo $?", outer='"$@" <&-'),
    Case("stdin-file", "cat", outer='"$@" < a.txt'),
    Case(
        "stdin-file-shared",
        "head -c 4 >/dev/null; read x; echo $x",
        outer='{ "$@"; echo rest; cat; } < big | md5sum',
    ),
    Case("stdin-file-line", "read x; echo $x", outer='{ "$@"; cat; } < a.txt'),
    Case("stdin-eof-after", "cat >/dev/null; cat; echo $?", input=b"x"),
    Case("stdin-process", "wc -c", outer='yes | head -c 100000 | "$@"'),
    Case("stdin-dev-zero", "head -c 10 | od -c", outer='"$@" < /dev/zero'),
    Case("dev-stdin", "cat /dev/stdin", input=b"by name\n"),
    Case("here-document", "cat <<E\nvalue $((2+3))\nE\ncat <<'E'\n$raw\nE\n"),
    Case("here-string", "cat <<< 'a string'"),
    Case("process-substitution", "diff <(echo a) <(echo b); cat < <(echo c)"),
    Case("substitution-out", "echo hello > >(tr a-z A-Z); wait; sleep 0.1"),
    # --- arguments, scripts
    Case("arguments", 'echo "$0|$1|$2|$#|$*"', args=("zero", "one", "two three")),
    Case("no-arguments", 'echo "$0|$#"'),
    Case("argument-empty", 'echo "$#|$1|"', args=("zero", "")),
    Case("argument-newline", 'printf "%s|" "$@"', args=("0", "a\nb", "-x", "--", "*")),
    Case("argument-bytes", 'printf %s "$1" | od -An -c', args=("0", "bad\udcff\udc80")),
    Case("option-after-text", 'echo "$0 $1"', args=("--fresh", "--net")),
    Case("long-text", "# " + "x" * 100_000 + "\necho end"),
    Case(
        "login-shell", "shopt -q login_shell; echo $?", words=("-l", "-c", "shopt -q login_shell")
    ),
    Case("c-then-l", "", words=("-c", "-l", "shopt -q login_shell; echo $?")),
    Case("options-posix", "", words=("--posix", "-c", "shopt -qo posix; echo $?")),
    Case("option-o", "", words=("-o", "pipefail", "-c", "false | true; echo $?")),
    Case("noglob", "", words=("-f", "-c", "echo *")),
    Case("stdin-script", "", words=("-s",), args=("a", "b"), input=b"echo $# $2\nexit 6\n"),
    Case("stdin-script-plain", "", words=("--norc",), input=b"echo plain\nread x\nline\necho $x\n"),
    Case("multi-line", "if true\nthen\n  echo yes\nfi\nfor i in a b; do\n echo $i\ndone"),
    Case("functions", 'f() { echo "$FUNCNAME $1"; return 3; }; f x; echo $?'),
    Case("arithmetic", "echo $((2**40 + 7 % 4)) $((0x1f)) $((1/0))"),
    Case("arrays", 'a=(x "y z"); a[5]=w; declare -A m=([k]=v); echo "${a[@]}" ${!a[@]} ${m[k]}'),
    Case("seconds", "echo $SECONDS; SECONDS=10; echo $SECONDS"),
    Case("random-seed", "RANDOM=5; echo $((RANDOM >= 0))"),
    Case("shell-variables", "echo $SHLVL $- $BASH_EXECUTION_STRING $BASH $OPTIND $IFS"),
    Case("source-file", ". ./plain.sh; source dir/b; echo $?"),
    # --- environment
    Case("environment", "env | grep -v -e ^SUBSTRATE_ -e ^_= | LC_ALL=C sort"),
    Case("env-passed", "echo $PYTHONPATH $CC", env={"PYTHONPATH": "/x", "CC": "gcc -O2"}),
    Case("env-named", "echo $MY_OWN", env={"MY_OWN": "value"}, ours=("--env", "MY_OWN")),
    Case("env-odd", "echo $LANG; printf %s $CFLAGS", env={"CFLAGS": "a\nb=c \udcff"}),
    Case("timezone", "date -d @0 '+%F %T %Z'", env={"TZ": "Asia/Tokyo"}),
    Case("locale-c", "locale | head -3; printf '%d\\n' \"'ä\"", env={"LC_ALL": "C"}),
    Case("locale-utf8", "x=äöü; echo ${#x} ${x^^}", env={"LC_ALL": "C.UTF-8"}),
    Case("oldpwd", "echo $OLDPWD", env={"OLDPWD": "/tmp"}),
    Case("many-variables", "env | grep -c ^GIT_", env={f"GIT_{i}": "v" * 500 for i in range(500)}),
    Case("path-lookup", "type -p ls; command -v cat"),
    Case("tilde", "test ~ = $HOME; echo $?; cd ~ && pwd | wc -l"),
    Case("whoami", 'test -n "$(id -un)"; echo $?; id -u'),
    # --- the process
    Case("pwd", "pwd; pwd -P; echo $PWD"),
    Case("cwd-below", "pwd; ls", cwd="dir/deep"),
    Case("cwd-space", "pwd; cat f", cwd="with space"),
    Case("cwd-newline", "pwd; cat f", cwd="new\nline"),
    Case("cwd-bytes", "pwd | od -An -c | tail -2; cat f", cwd="bad\udcff"),
    Case("cwd-dash", "pwd; cat f", cwd="-dash"),
    Case("cwd-logical", "pwd; pwd -P; cd ..; pwd", outer='cd linkdir && "$@"'),
    Case("cwd-wrong-pwd", "pwd", env={"PWD": "/nonsense"}),
    Case("umask-default", "umask; touch u; stat -c %a u"),
    Case("umask-077", "umask; touch u; mkdir d; stat -c %a u d", outer='umask 077; "$@"'),
    Case("umask-000", "touch u; mkdir d", outer='umask 000; "$@"'),
    Case("umask-inside", "umask 027; touch u"),
    Case("ulimit-n", "ulimit -n; ulimit -Hn", outer='ulimit -n 300; "$@"'),
    Case("ulimit-s", "ulimit -s", outer='ulimit -Ss 4096; "$@"'),
    Case(
        "ulimit-f",
        "{ head -c 99999 /dev/zero > f; } 2>/dev/null; echo $?; wc -c < f",
        outer='ulimit -f 10; "$@"',
    ),
    Case("ulimit-c", "ulimit -c", outer='ulimit -c 0; "$@"'),
    Case("ulimit-v", "ulimit -v", outer='ulimit -v 8000000; "$@"'),
    Case("ulimit-t", "ulimit -t", outer='ulimit -t 100; "$@"'),
    Case("nice", "nice", outer='nice -n 5 "$@"'),
    Case("ignored-signal", "trap; kill -INT $$; echo alive", outer="trap '' INT; \"$@\""),
    Case("ignored-hup", "kill -HUP $$; echo alive", outer='nohup "$@" 2>/dev/null'),
    Case("session-leader", "ps -o tty= -p $$ | tr -d ' '"),
    Case("max-arguments", "getconf ARG_MAX"),
    Case("cpus", "nproc"),
    # --- files
    Case("write", "echo new > new.txt; echo more >> a.txt; cat a.txt new.txt"),
    Case("delete", "rm a.txt dir/b; ls -A; ls dir"),
    Case("delete-tree", "rm -r dir linkdir; ls -A"),
    Case("delete-and-make", "rm -r dir; mkdir dir; touch dir/only; ls -A dir"),
    Case("rename", "mv a.txt renamed; mv dir moved; ls -A . moved"),
    Case("rename-over", "mv dir/b a.txt; cat a.txt; ls dir"),
    Case(
        "hard-links",
        "stat -c %h h1; cat h2; ln a.txt a2; echo more >> a2; cat a.txt; stat -c %h a2",
    ),
    Case("new-hard-links", "echo x > n1; ln n1 n2; ln n1 dir/n3; stat -c %h n1; rm n1; cat n2"),
    Case(
        "symlinks",
        "cat link; readlink dangling; cat dangling; ln -sfn dir/deep linkdir; ls linkdir/",
    ),
    Case("chmod", "chmod 600 a.txt; chmod 1777 dir; chmod u+s script.sh; stat -c '%a %n' *"),
    Case("touch-times", "touch -d @1000000000 a.txt new; stat -c %Y a.txt new"),
    Case("keep-times", "cp -p a.txt copy; test a.txt -nt copy; echo $?"),
    Case(
        "odd-names",
        "touch $'a\\nb' $'\\xfe\\xff' ' lead' '*' \"q'uote\" -- -x; ls -A | od -An -c | head -20",
    ),
    Case("long-name", "n=$(printf 'n%.0s' {1..255}); touch $n; ls | grep -c nnnn; touch ${n}n"),
    Case(
        "deep-tree",
        "p=d; for i in {1..60}; do p=$p/d; done; mkdir -p $p; echo x > $p/f; find d | wc -l",
    ),
    Case("globs", "echo *; echo .*; shopt -s dotglob; echo *; shopt -s nullglob; echo nope*"),
    Case("braces", "touch {a,b}{1..3}.x; ls *.x"),
    Case("mkfifo", "mkfifo p; echo through > p & cat p; wait; stat -c %F p"),
    Case("truncate", "> a.txt; truncate -s 10 big; stat -c '%s %n' a.txt big"),
    Case(
        "sparse",
        "truncate -s 50M s; echo end >> s; stat -c %s s; du -k s | cut -f1 | awk '{print ($1 < 100)}'",
    ),
    Case(
        "overwrite-big", "printf X | dd of=big bs=1 seek=50000 conv=notrunc status=none; md5sum big"
    ),
    Case("noclobber", "set -C; echo x > a.txt; echo $?"),
    Case("append-log", "for i in {1..50}; do echo $i >> log; done; md5sum log"),
    Case("deleted-but-open", "exec 4< a.txt; rm a.txt; cat <&4; ls a.txt"),
    Case("write-through-link", "echo via > link; cat a.txt"),
    Case("permission-kept", "cat a.txt > copy; cp script.sh c.sh; stat -c '%a %n' copy c.sh"),
    Case("flock", "(flock 9; echo locked) 9> lock"),
    Case("tar-round", "tar c dir | (mkdir t; cd t; tar x); diff -r dir t/dir; echo $?"),
    Case("find-exec", "find . -name '*.sh' -exec basename {} \\; | LC_ALL=C sort"),
    Case("xargs", "printf '%s\\0' a b 'c d' | xargs -0 -n1 echo"),
    Case("sed-in-place", "sed -i s/two/2/ a.txt; cat a.txt; stat -c %a a.txt"),
    Case("mktemp", "f=$(mktemp); test -f $f && echo made; rm $f"),
    Case("dev-shm", "echo x > /dev/shm/f$$; cat /dev/shm/f$$; rm /dev/shm/f$$"),
    Case("no-access", "chmod 000 a.txt; test $(id -u) = 0 || cat a.txt; chmod 644 a.txt"),
    Case(
        "git",
        "git init -q r && cd r && git -c user.name=n -c user.email=e@e commit -q --allow-empty"
        " --date=@0 -m m && git log --format=%s && rm -rf .git",
    ),
    Case(
        "python",
        "python3 -c 'import sys,os; print(sys.argv, os.getcwd() == os.environ[\"PWD\"])' x",
    ),
    # --- children
    Case("background", "sleep 0.05 & wait $!; echo $?"),
    Case("background-status", "(exit 7) & wait $!; echo $?"),
    Case("background-output", "(sleep 0.1; echo late) & echo early"),
    Case("kill-job", "sleep 60 & kill %1; wait %1 2>/dev/null; echo $?"),
    Case("jobs", "sleep 0.01 & jobs | sed 's/ .*//' | wc -l; wait"),
    Case("subshell", "(cd dir; pwd; exit 3); echo $?; pwd"),
    Case("setsid", "setsid -w sh -c 'echo in session; exit 4'; echo $?"),
    Case("nohup", "nohup sh -c 'echo not hung up' 2>/dev/null"),
    Case("disown", "(sleep 0.05; echo later > disowned) & disown; sleep 0.2; cat disowned"),
    Case(
        "coproc",
        "coproc tr a-z A-Z; echo word >&${COPROC[1]}; exec {COPROC[1]}>&-; cat <&${COPROC[0]}",
    ),
    Case("timeout-command", "timeout 0.1 sleep 5; echo $?"),
    Case("orphan", "(sh -c 'sleep 0.05; echo orphan > o' &) ; sleep 0.2; cat o"),
    Case("many-children", "for i in {1..50}; do (exit $i) & done; wait; echo done"),
    Case("pipeline-long", "seq 1000 | sort -r | sort -n | uniq | tail -1 | cat | cat"),
    Case("stderr-of-child", "sh -c 'echo a >&2' 2>&1 | cat"),
    Case("big-argument", 'printf %s "$1" | wc -c', args=("0", "x" * 130_000)),
    Case("big-arguments", "echo $#", args=("0", *["y" * 100_000] * 10)),
    Case("argument-too-long", "/bin/true $(printf 'x%.0s' {1..200000}) 2>&1 | cut -d: -f3-"),
    Case("unix-socket", f"python3 -c '{_PYTHON_SERVER}' unix s; test -S s; echo $?; rm s"),
    Case("localhost", f"python3 -c '{_PYTHON_SERVER}' inet 0"),
    Case("proc-self", "readlink /proc/self/exe; tr '\\0' ' ' < /proc/self/cmdline"),
    Case("dev-null", "echo x > /dev/null; cat /dev/null; wc -c < /dev/null"),
    Case("dev-random", "head -c 8 /dev/urandom | wc -c"),
    Case("dev-tty", "echo x > /dev/tty"),
    Case("alarm", "perl -e 'alarm 1; select(undef,undef,undef,0.01); print qq(ok\\n)'"),
]

CASES = {case.name: case for case in _PLAIN}
assert len(CASES) == len(_PLAIN), "two cases of one name"
#: a smaller choice, for the backend that few use
CHOICE = [name for place, name in enumerate(CASES) if place % 5 == 0]
