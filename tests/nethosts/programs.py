"""Programs of Debian as servers: nginx, sshd with git, PostgreSQL; and a package index.

Each listens on the server machine's loopback; a tap in front of it has the public addresses, and
counts. What they need lies below the hosts' directory.
"""

import base64
import glob
import hashlib
import os
import pwd
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.nethosts import content
from tests.nethosts.machine import Machine

#: Debian package of each program that the hosts or their tests run
PACKAGES = {
    "/usr/sbin/nginx": "nginx-light",
    "/usr/sbin/sshd": "openssh-server",
    "/usr/bin/ssh-keygen": "openssh-client",
    "/usr/lib/git-core/git-http-backend": "git",
    "/usr/lib/postgresql/*/bin/initdb": "postgresql",
    "/usr/bin/psql": "postgresql-client",
    "/usr/sbin/ip": "iproute2",
    "/usr/bin/nsenter": "util-linux",
    "/usr/bin/curl": "curl",
    "/usr/bin/wget": "wget",
    "/usr/bin/dig": "bind9-dnsutils",
    "/usr/bin/node": "nodejs",
    "/usr/bin/python3": "python3",
    "/usr/bin/pip3": "python3-pip",
}
GIT_UID = 64321
SSH_PORT, NGINX_PORT, DATABASE_PORT = 10022, 10443, 10432


def need(pattern: str) -> str:
    """The newest of the paths that a pattern of PACKAGES has. Where CI runs, .ci/run has installed
    all of them: there it is a failure that there is none."""
    found = sorted(glob.glob(pattern))
    if not found:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing(f"{pattern} is not there: install {PACKAGES[pattern]}")
    return found[-1]


def start_nginx(machine: Machine, base: Path, log: Path, certificate: Path) -> Path:
    """HTTP/2 and HTTP/1.1 over TLS; files of the returned directory. Writes its requests into
    the tap's log."""
    program = need("/usr/sbin/nginx")
    place = base / "nginx"
    files = place / "files"
    files.mkdir(parents=True)
    for size in (1000, 1_000_000, 20_000_000):
        (files / f"{size}").write_bytes(content.content(size))
    (files / "index.html").write_text("h2.example.net\n")
    line = (
        '{"event":"behind","sni":"$ssl_server_name","host":"$host","method":"$request_method",'
        '"target":"$request_uri","protocol":"$server_protocol","length":"$content_length"}'
    )
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    (place / "nginx.conf").write_text(
        f"""
        daemon off; master_process off; user root; pid {place}/pid; error_log stderr;
        events {{ worker_connections 256; }}
        http {{
            {" ".join(f"{kind}_temp_path {place}/{kind};" for kind in kinds)}
            log_format seen escape=json '{line}';
            access_log {log} seen;
            server {{
                listen 127.0.0.1:{NGINX_PORT} ssl http2;
                listen 127.0.0.1:{NGINX_PORT + 1} http2;
                ssl_certificate {certificate}; ssl_certificate_key {certificate};
                ssl_protocols TLSv1.2 TLSv1.3;
                root {files};
            }}
        }}
        """
    )
    machine.order(
        "program",
        words=[program, "-p", str(place), "-c", f"{place}/nginx.conf", "-e", "stderr"],
        output=str(base / "nginx.output"),
        ready=("127.0.0.1", NGINX_PORT),
    )
    return files


def make_repository(base: Path) -> Path:
    """A directory of repositories with one, project.git, of a few commits; theirs is GIT_UID."""
    place = base / "repositories"
    place.mkdir()
    environ = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(place),
        "GIT_CONFIG_NOSYSTEM": "1",
        **{f"GIT_{who}_NAME": "Somebody" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "somebody@example.net" for who in ("AUTHOR", "COMMITTER")},
    }
    script = """
        git init -q -b main work; cd work
        echo one > file; head -c 300000 "$1" > big; git add .; git commit -qm 'Begin'
        echo two >> file; git commit -qam 'Go on'
        cd ..; git clone -q --bare work project.git; rm -rf work
        git -C project.git config http.receivepack true
    """
    big = base / "big"
    big.write_bytes(content.content(300_000))
    done = subprocess.run(
        ["sh", "-euc", script, "sh", big], cwd=place, env=environ, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(f"git: {done.stdout}{done.stderr}")
    for path, names, files in os.walk(place):
        for name in (".", *names, *files):
            os.chown(os.path.join(path, name), GIT_UID, GIT_UID)
    return place


def start_sshd(machine: Machine, base: Path, repositories: Path) -> tuple[Path, Path]:
    """A server where `git@` may log in with a key of the tests; returns (key, known hosts)."""
    program, keygen = need("/usr/sbin/sshd"), need("/usr/bin/ssh-keygen")
    place = base / "ssh"
    place.mkdir()
    for name in ("host", "client"):
        subprocess.run(
            [keygen, "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", place / name], check=True
        )
    public = (place / "host.pub").read_text()
    known = place / "known_hosts"
    known.write_text(f"git.example.net,[git.example.net]:2222 {public}")
    # Of the account nobody here uses, and readable: ssh refuses only its own user's open keys.
    os.chown(place / "client", GIT_UID + 1, GIT_UID + 1)
    (place / "client").chmod(0o644)
    (place / "sshd_config").write_text(
        f"""
        ListenAddress 127.0.0.1
        Port {SSH_PORT}
        HostKey {place}/host
        AuthorizedKeysFile {place}/client.pub
        StrictModes no
        UsePAM no
        PasswordAuthentication no
        PidFile none
        """
    )
    machine.run("mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run")
    machine.run("mkdir", "/run/sshd", "/run/etc", "/run/etc.work")
    # Not a mount on the file itself: it would go as soon as the host's useradd renames a new one.
    layers = "lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc.work"
    machine.run("mount", "-t", "overlay", "-o", layers, "etc", "/etc")
    account = f"git:*:{GIT_UID}:{GIT_UID}::{repositories}:/bin/sh\n"
    machine.run("tee", "-a", "/etc/passwd", content=account)
    machine.order(
        "program",
        words=[program, "-D", "-e", "-f", f"{place}/sshd_config"],
        output=str(base / "sshd.output"),
        ready=("127.0.0.1", SSH_PORT),
    )
    return place / "client", known


def start_database(machine: Machine, base: Path, certificate: Path) -> None:
    """PostgreSQL as Debian's unprivileged user, with and without TLS; everybody may connect as
    `postgres`."""
    initdb = need("/usr/lib/postgresql/*/bin/initdb")
    owner = pwd.getpwnam("postgres")
    place = base / "database"
    place.mkdir(mode=0o700)
    os.chown(place, owner.pw_uid, owner.pw_gid)
    data = str(place / "data")
    own = place / "certificate.pem"
    own.write_bytes(certificate.read_bytes())
    own.chmod(0o600)
    os.chown(own, owner.pw_uid, owner.pw_gid)
    machine.run(
        *("setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"),
        *(initdb, "-D", data, "-A", "trust", "-U", "postgres", "--no-sync", "--locale=C.UTF-8"),
    )
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": DATABASE_PORT,
        "unix_socket_directories": str(place),
        "ssl": "on",
        "ssl_cert_file": str(own),
        "ssl_key_file": str(own),
        "fsync": "off",
        "shared_buffers": "8MB",
        "max_connections": 20,
    }
    machine.order(
        "program",
        words=[
            *(os.path.join(os.path.dirname(initdb), "postgres"), "-D", data),
            *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
        ],
        uid=owner.pw_uid,
        gid=owner.pw_gid,
        output=str(base / "database.output"),
        ready=("127.0.0.1", DATABASE_PORT),
    )


def make_index(base: Path) -> Path:
    """A directory with a simple index (PEP 503) of two packages: `nethosts-probe` 1.0 requires
    `nethosts-base`."""
    place = base / "index"
    projects = {"nethosts-base": (), "nethosts-probe": ("nethosts-base",)}
    for name, required in projects.items():
        folder = place / "simple" / name
        folder.mkdir(parents=True)
        wheel = _wheel(folder, name, required)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        link = f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>'
        (folder / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")
    links = "".join(f'<a href="{name}/">{name}</a>' for name in projects)
    (place / "simple" / "index.html").write_text(
        f"<!DOCTYPE html><html><body>{links}</body></html>"
    )
    return place


def _wheel(folder: Path, name: str, required: tuple[str, ...]) -> Path:
    module = name.replace("-", "_")
    about = f"{module}-1.0.dist-info"
    needs = "".join(f"Requires-Dist: {other}\n" for other in required)
    files = {
        f"{module}.py": "def works():\n    return True\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: nethosts\n"
        "Root-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record += f"{path},sha256={digest.decode()},{len(text.encode())}\n"
    files[f"{about}/RECORD"] = f"{record}{about}/RECORD,,\n"
    wheel = folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        for path, text in files.items():
            packed.writestr(path, text)
    return wheel
