"""What is told of a command's end: from recorded words of real tools, and nothing from others'."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate.session.denials import MOST, Seen, denials
from substrate.session.settings import Places, load_settings

HOME, WORK = b"/home/ann", b"/home/ann/work"
HIDDEN = (
    b"/home/ann/.ssh",
    b"/home/ann/.netrc",
    b"/home/ann/.gnupg",
    b"/srv/key file",
    b"/etc/shadow",
)


def settings(net="none", **environ):
    environ["net"] = net
    where = Places(
        cwd=WORK, workspace=WORK, home=HOME, user_file=b"/nonexistent", system_file=b"/nonexistent"
    )
    given_ = {f"SUBSTRATE_{k.upper()}".encode(): v.encode() for k, v in environ.items()}
    return load_settings((), given_, where, on_terminal=False).settings


def seen(output=b"", *, backend="ns-user", uid=1000, signal=None, environ=(), **more):
    return Seen(
        **{
            "backend": backend,
            "settings": settings(**dict(environ)),
            "output": output if isinstance(output, bytes) else output.encode(),
            "signal": signal,
            "uid": uid,
            "cwd": WORK,
            "home": HOME,
            "hidden": HIDDEN,
            **more,
        }
    )


def codes(*args, **kwargs):
    return [denial.code for denial in denials(seen(*args, **kwargs))]


#: (words of a real tool, code)
TRUE = [
    (
        'sudo: The "no new privileges" flag is set, which prevents sudo from running as root.\n'
        "sudo: If sudo is running in a container, you may need to adjust the container "
        "configuration to disable the flag.",
        "no_new_privs",
    ),
    ("sudo: /usr/bin/sudo must be owned by uid 0 and have the setuid bit set", "no_new_privs"),
    (
        "sudo: effective uid is not 0, is /usr/bin/sudo on a file system with the 'nosuid' option set "
        "or an NFS file system without root privileges?",
        "no_new_privs",
    ),
    (
        "mktemp: failed to create file via template ‘/tmp/shared/tmp.XXXXXXXXXX’: Value too large "
        "for defined data type",
        "foreign_directory",
    ),
    (
        "fatal: hardlink different from source at "
        "'c3/.git/objects/1c/99002b20b3c0e11a95c8423601a38fff9b3675'",
        "git_hard_links",
    ),
    ("cat: /dev/fd/63: No such file or directory", "descriptors"),
    ("Password: su: Authentication failure", "no_new_privs"),
    ("su: Authentication failure", "no_new_privs"),
    ("pkexec must be setuid root", "no_new_privs"),
    (
        "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon "
        "running?",
        "docker",
    ),
    (
        "permission denied while trying to connect to the Docker daemon socket at "
        "unix:///var/run/docker.sock",
        "docker",
    ),
    ("Cannot connect to Podman. Please verify your connection to the Linux system", "docker"),
    (
        "System has not been booted with systemd as init system (PID 1). Can't operate.\n"
        "Failed to connect to bus: Host is down",
        "host_services",
    ),
    ("Failed to connect to bus: No such file or directory", "host_services"),
    (
        'Failed to open connection to "session" message bus: Unable to autolaunch a dbus-daemon '
        "without a $DISPLAY for X11",
        "host_services",
    ),
    ("curl: (6) Could not resolve host: example.invalid", "network"),
    (
        "curl: (7) Failed to connect to 203.0.113.7 port 80 after 0 ms: Couldn't connect to server",
        "network",
    ),
    ("wget: unable to resolve host address ‘example.invalid’", "network"),
    (
        "fatal: unable to access 'https://example.invalid/x.git/': Could not resolve host: "
        "example.invalid",
        "network",
    ),
    (
        "ssh: Could not resolve hostname example.invalid: Temporary failure in name resolution",
        "network",
    ),
    ("socket.gaierror: [Errno -3] Temporary failure in name resolution", "network"),
    ("OSError: [Errno 101] Network is unreachable", "network"),
    ("  Temporary failure resolving 'deb.debian.org'", "network"),
    ("Error: getaddrinfo EAI_AGAIN registry.npmjs.org", "network"),
    ("npm ERR! network request to https://x failed, reason: getaddrinfo EAI_AGAIN x", "network"),
    (
        "  failed to lookup address information: Temporary failure in name resolution",
        "network",
    ),
    (
        'psql: error: connection to server at "localhost" (127.0.0.1), port 5432 failed: Connection '
        "refused",
        "localhost",
    ),
    ("Could not connect to Redis at 127.0.0.1:6379: Connection refused", "localhost"),
    ("Error: connect ECONNREFUSED 127.0.0.1:3000", "localhost"),
    (
        "curl: (7) Failed to connect to localhost port 8080 after 0 ms: Couldn't connect to server",
        "localhost",
    ),
    ("unshare: unshare failed: Operation not permitted", "namespaces"),
    (
        "bwrap: No permissions to create new namespace, likely because the kernel does not allow "
        "non-privileged user namespaces.",
        "namespaces",
    ),
    ("bwrap: Creating new namespace failed: Operation not permitted", "namespaces"),
    (
        "[1:1:FATAL:zygote_host_impl_linux.cc(126)] No usable sandbox! Update your kernel",
        "namespaces",
    ),
    (
        "Failed to move to new namespace: PID namespaces supported, Network namespace supported, but "
        "failed: errno = Operation not permitted",
        "namespaces",
    ),
    ("cannot clone: Operation not permitted", "namespaces"),
    (
        "strace: test_ptrace_get_syscall_info: PTRACE_TRACEME: Operation not permitted\n"
        "strace: ptrace(PTRACE_TRACEME, ...): Operation not permitted",
        "ptrace",
    ),
    (
        "warning: Could not trace the inferior process.\nwarning: ptrace: Operation not permitted",
        "ptrace",
    ),
    ("Error:\nNo permission to enable task-clock event.", "performance_counters"),
    ("mount: /mnt: permission denied.", "mounts"),
    ("mount: /mnt: must be superuser to use mount.", "mounts"),
    ("umount: /proc: must be superuser to unmount.", "mounts"),
    ("chroot: cannot change root directory to '/': Operation not permitted", "chroot"),
    ("dmesg: read kernel buffer failed: Operation not permitted", "kernel_log"),
    ("RTNETLINK answers: Operation not permitted", "network_setup"),
    ("iptables: Failed to initialize nft: Protocol not supported", "network_setup"),
    ("ping: socktype: SOCK_RAW\nping: socket: Operation not permitted", "raw_sockets"),
    ("mknod: x: Operation not permitted", "device_nodes"),
    ("date: cannot set date: Operation not permitted", "machine"),
    ("hostname: you must be root to change the host name", "machine"),
    ('sysctl: permission denied on key "kernel.panic"', "sysctl"),
    ("cat: /home/ann/.netrc: Permission denied", "hidden"),
    ("cat: .netrc: Permission denied", None),  # of another directory
    ("cat: ~/.ssh/id_ed25519: No such file or directory", "hidden"),
    ("ls: cannot open directory '/home/ann/.ssh': Permission denied", "hidden"),
    ('Load key "/home/ann/.ssh/id_rsa": Permission denied', "hidden"),
    ("cp: cannot open '/srv/key file' for reading: Permission denied", "hidden"),
    ("touch: cannot touch '/usr/x': Read-only file system", "read_only"),
    ("OSError: [Errno 30] Read-only file system: '/opt/x'", "read_only"),
    ("Error: EROFS: read-only file system, open '/usr/x'", "read_only"),
    ("sh: 1: cannot create /proc/sys/kernel/panic: Read-only file system", "sysctl"),
    ("chmod: changing permissions of '/dev/null': Read-only file system", "read_only"),
]


@pytest.mark.parametrize(("output", "code"), TRUE)
def test_the_words_of_real_tools_are_known(output, code):
    found = denials(seen(f"something before\n{output}\nand after it\n"))
    assert [d.code for d in found][:1] == ([code] if code else [])
    assert all(len(d.text) < 200 and "\n" not in d.text for d in found)


ORDINARY = [
    "cat: missing: No such file or directory",
    "cat: /tmp/closed: Permission denied",
    "ls: cannot open directory '/root': Permission denied",
    "bash: line 1: nosuchcommand: command not found",
    "bash: ./script: Permission denied",
    "bash: line 1: syntax error near unexpected token `)'",
    "grep: a.txt: No such file or directory",
    "make: *** No rule to make target 'x'.  Stop.",
    "make: *** [Makefile:2: all] Error 1",
    "main.c:3:5: error: expected ';' before 'return'",
    "/usr/bin/ld: cannot find -lnosuch: No such file or directory",
    "collect2: error: ld returned 1 exit status",
    "Traceback (most recent call last):\n  File \"x.py\", line 1\nModuleNotFoundError: No module named 'x'",
    "AssertionError: assert 1 == 2",
    "PermissionError: [Errno 13] Permission denied: 'closed'",
    "FileNotFoundError: [Errno 2] No such file or directory: 'x'",
    "OSError: [Errno 28] No space left on device",
    "FAILED tests/test_x.py::test_y - assert False",
    "fatal: not a git repository (or any of the parent directories): .git",
    "error: pathspec 'x' did not match any file(s) known to git",
    "CONFLICT (content): Merge conflict in x",
    "error: failed to push some refs to '/srv/repo.git'",
    'npm ERR! Missing script: "x"',
    "npm ERR! code ERESOLVE",
    "Error: Cannot find module './x'",
    "SyntaxError: Unexpected token '}'",
    "TypeError: x is not a function",
    "error[E0382]: borrow of moved value: `x`",
    'error: could not compile `x` (bin "x") due to 1 previous error',
    "x.go:3:2: undefined: y",
    "tar: x.tar: Cannot open: No such file or directory",
    "rm: cannot remove 'd': Is a directory",
    "rmdir: failed to remove 'd': Directory not empty",
    "mkdir: cannot create directory ‘d’: File exists",
    "cp: cannot stat 'x': No such file or directory",
    "chown: changing ownership of 'x': Operation not permitted",
    "kill: (4711) - No such process",
    "timeout: failed to run command 'x': No such file or directory",
    "curl: (22) The requested URL returned error: 404",
    "curl: (3) URL using bad/illegal format or missing URL",
    "wget: missing URL",
    "ssh: connect to host box port 22: Connection refused",
    "ConnectionRefusedError: [Errno 111] Connection refused",
    "jq: error (at <stdin>:1): Cannot index number",
    "sed: -e expression #1, char 1: unknown command: `x'",
    "awk: line 1: syntax error at or near }",
    "diff: x: No such file or directory",
    'psql: error: FATAL:  role "x" does not exist',
    'ERROR:  relation "x" does not exist',
    "error: Microsoft Visual C++ 14.0 is required",
    "E: Unable to locate package nosuch",
    "dpkg: error: cannot access archive 'x.deb': No such file or directory",
    "gpg: can't open 'x': No such file or directory",
    "openssl: error: x: No such file or directory",
    "cat: /home/ann/.sshd: No such file or directory",
    "cat: /home/ann/.netrc.example: No such file or directory",
    "cat: x/home/ann/.netrc: No such file or directory",
    "the mount of evidence: permission denied by the judge",
    "He said: sudo: the no new privileges flag",
    "Segmentation fault",
    "Killed",
    "MemoryError",
    "OSError: [Errno 24] Too many open files",
    "fork system call of the manual",
    "Could not open a connection to your authentication agent.",  # none was withheld
    "cannot open display: ",
]


@pytest.mark.parametrize("backend", ["ns-user", "ns-root-idmap"])
@pytest.mark.parametrize("output", ORDINARY)
def test_ordinary_failures_are_left_alone(output, backend):
    assert (
        codes(f"{output}\n", backend=backend, uid=0 if backend == "ns-root-idmap" else 1000) == []
    )


@pytest.mark.parametrize("output", [output for output, _ in TRUE])
def test_without_a_world_nothing_is_denied(output):
    assert codes(output, backend="none") == []


# --- a rule speaks only where the world denies it


def test_no_word_about_the_network_where_there_is_one():
    for text in ("curl: (6) Could not resolve host: x", "connect ECONNREFUSED 127.0.0.1:1"):
        assert codes(text) != []
        assert codes(text, environ={"net": "host"}) == []
    # of what a filtered one refused, its own record tells
    assert codes("curl: (6) Could not resolve host: x", environ={"net": "filtered"}) == []


def test_no_word_about_debuggers_where_they_may():
    text = "strace: ptrace(PTRACE_TRACEME, ...): Operation not permitted"
    assert codes(text, environ={"ptrace": "true"}) == []


def test_nested_namespaces_are_told_what_is_still_missing():
    text = "bwrap: Creating new namespace failed: Operation not permitted"
    assert codes(text, environ={"userns": "true"}) == []
    (root,) = denials(seen(text, environ={"userns": "true"}, backend="ns-root-idmap", uid=0))
    assert "--unshare-user" in root.text and "cgroup" not in root.text
    (root,) = denials(seen(text, environ={"userns": "true"}, backend="ns-root", uid=0))
    assert "--unshare-all" in root.text
    proc = "bwrap: Can't mount proc on /newroot/proc: Operation not permitted"
    assert codes(proc, environ={"userns": "true"}) == ["new_proc"]


def test_agents_and_displays_are_missed_only_where_they_were():
    agent = "Could not open a connection to your authentication agent."
    assert codes(agent, withheld=(b"SSH_AUTH_SOCK",)) == ["ssh_agent"]
    display = "xterm: Xt error: Can't open display: :0"
    assert codes(display, withheld=(b"DISPLAY",)) == ["display"]
    sign = "error: gpg failed to sign the data"
    assert codes(sign) == ["gpg_agent"]
    assert codes(sign, hidden=()) == []


def test_root_of_a_world_needs_no_sudo():
    text = "root is not in the sudoers file."
    (found,) = denials(seen(text, backend="ns-root-idmap", uid=0))
    assert "leave sudo out" in found.text
    assert codes(text) == []


@pytest.mark.parametrize(
    ("environ", "more", "code", "words"),
    [
        ({"limit_memory": "512m"}, {"memory_kills": 2}, "memory_limit", "512m"),
        ({"limit_memory": "512m"}, {"output": b"MemoryError"}, "memory_limit", "--limit memory"),
        ({"limit_pids": "50"}, {"pids_refused": 3}, "pids_limit", "50 processes"),
        (
            {"limit_pids": "50"},
            {"output": b"bash: fork: retry: Resource temporarily unavailable"},
            "pids_limit",
            "--limit pids=N",
        ),
        (
            {"limit_open_files": "64"},
            {"output": b"OSError: [Errno 24] Too many open files"},
            "open_files_limit",
            "--limit open_files=N",
        ),
        ({"limit_file_size": "1m"}, {"signal": 25}, "file_size_limit", "1m"),
        ({}, {"signal": 31}, "system_call", "32-bit"),
    ],
)
def test_limits_name_themselves(environ, more, code, words):
    (found,) = denials(seen(environ=environ, **more))
    assert found.code == code
    assert words in found.text


def test_counters_without_a_limit_of_ours_say_nothing():
    assert codes(memory_kills=3) == []


def test_places_name_the_setting_that_they_come_from():
    text = b"cat: /srv/data/x: Permission denied"
    (found,) = denials(seen(text, hidden=(b"/srv/data",), asked=(b"/srv/data",)))
    assert "`hide`" in found.text
    text = b"touch: cannot touch '/srv/data/x': Read-only file system"
    (found,) = denials(seen(text, read_only=(b"/srv/data",), asked=(b"/srv/data",)))
    assert "`ro`" in found.text
    (found,) = denials(seen(text, read_only=(b"/srv",), backend="ns-root-idmap"))
    assert "no setting changes that" in found.text
    assert codes(text, backend="ns-root-idmap") == []
    (found,) = denials(seen(text))
    assert "--rw PATH" in found.text


def test_a_hidden_path_in_the_current_directory_is_known_by_its_short_name():
    hidden = (WORK + b"/.env", WORK + b"/secrets")
    for text in ("cat: .env: Permission denied", "open './secrets/a': No such file or directory"):
        assert codes(text, hidden=hidden) == ["hidden"]
    for text in ("cat: .env.example: Permission denied", "cat: my.env: Permission denied"):
        assert codes(text, hidden=hidden) == []


# --- hostile output


def test_no_more_than_three_lines():
    every = "\n".join(output for output, _ in TRUE)
    assert len(denials(seen(every))) == MOST


def test_nothing_of_the_output_stands_in_a_line():
    attack = b"curl: (6) Could not resolve host: \x1b]0;owned\x07\x1b[2J\xff\n"
    (found,) = denials(seen(attack))
    assert found.text.isprintable()
    assert "owned" not in found.text


@given(st.binary(max_size=2000))
def test_no_output_breaks_it(output):
    for denial in denials(seen(output)):
        assert denial.text.isprintable()


def test_a_flood_of_output_costs_little():
    import time

    began = time.monotonic()
    denials(seen(b"localhost " * 100_000 + b"\n" * 5000))
    assert time.monotonic() - began < 1
