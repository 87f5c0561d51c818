"""Databases on disk in worlds: SQLite, PostgreSQL and Redis.

SQLite's files are compared with a plain copy's by what they hold. A server's files differ from
run to run: there it is the host's server that must find what the world's left, also when the
world was killed in between.
"""

import glob
import hashlib
import os
import re
import sqlite3

from tests.system import tree_listing
from tests.system.plain_copy import (
    Place,
    changes,
    differing,
    killed,
    must_agree,
    need,
    with_times_that_count,
)


def _rows(path):
    """What a database holds, by itself and without the numbers of rows, which two writers draw
    in any order; nothing is written."""
    database = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    try:
        assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
        lines = list(database.iterdump())
    finally:
        database.close()
    known = sorted(re.sub(r"VALUES\(\d+,", "VALUES(N,", line) for line in lines)
    return hashlib.sha256("\n".join(known).encode()).hexdigest()


_SQLITE = """
sqlite3 host.db 'create table t(id integer primary key, name text, body blob); create index i on t(name);'
for n in $(seq 200); do echo "insert into t values($n, 'name $n', zeroblob($n));"; done |
    (echo 'begin;'; cat; echo 'commit;') | sqlite3 host.db
cp host.db wal.db; sqlite3 wal.db 'pragma journal_mode=wal' >/dev/null
"""
#: one of two writers that wait for each other; each adds a hundred rows
_WRITER = """
cat > writer.py <<'END'
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for n in range(100):
    database.execute("begin immediate")
    (last,) = database.execute("select max(id) from t").fetchone()
    database.execute("insert into t values(?, ?, ?)", (last + 1, "written", b"x" * n))
    database.execute("commit")
database.close()
END
cat > killed.py <<'END'
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("pragma cache_size=5")
database.execute("insert into t values(100000, 'committed', 'c')")
database.execute("pragma cache_spill=5")
database.execute("begin immediate")
for n in range(2000):
    database.execute("insert into t values(?, 'lost', zeroblob(3000))", (200000 + n,))
database.execute("update t set name = 'lost' where id < 100")
os.kill(os.getpid(), signal.SIGKILL)
END
"""


def test_sqlite_with_journals_logs_and_writers(every_caller):
    need("sqlite3")
    after = Place(
        caller=every_caller,
        setup=_SQLITE + _WRITER,
        readers=((r".*\.db", _rows),),
    ).compare(
        """
        sqlite3 host.db "update t set name = 'changed' where id % 3 = 0; delete from t where id > 150;"
        sqlite3 host.db 'pragma journal_mode=truncate; insert into t values(null, 1, 2); vacuum;
            pragma integrity_check; select count(*), sum(length(body)) from t;'
        """,
        """
        for n in 1 2 3; do /usr/bin/python3 writer.py host.db & /usr/bin/python3 writer.py wal.db & done
        wait; for n in host wal; do sqlite3 $n.db 'pragma journal_mode; select count(*) from t'; done; ls
        """,
        # killed in a transaction: a journal that must be rolled back, a log without its commit
        """
        for n in host wal; do sh -c "/usr/bin/python3 killed.py $n.db || true" 2>/dev/null; done; ls
        """,
        # in the layer above: the next to open it recovers it
        """
        for n in host wal; do sqlite3 $n.db 'select count(*) from t where name = "lost";
            select count(*) from t where name = "committed"; pragma integrity_check;
            pragma wal_checkpoint(truncate);'; done; ls
        """,
        "sqlite3 new.db 'create table n(a); insert into n values(1);'; sqlite3 host.db .dump | sqlite3 copy.db",
        "sqlite3 host.db \".backup saved.db\"; sqlite3 host.db '.restore new.db'; sqlite3 wal.db 'pragma journal_mode=delete'",
    )  # fmt: skip
    assert "wal.db-wal" not in after and "host.db-journal" not in after


def test_sqlite_that_is_open_on_the_host(caller):
    """The world sees what was committed when it first wrote; the host's connection goes on with
    its own file, and what it commits is a conflict with what the world did."""
    need("sqlite3")
    place = Place(caller=caller, setup=_SQLITE)
    place.make()
    for name in ("host.db", "wal.db"):
        database = sqlite3.connect(caller.work / name, isolation_level=None)
        try:
            (count,) = database.execute("select count(*) from t").fetchone()
            assert place.world(f"sqlite3 {name} 'delete from t where id < 11'").returncode == 0
            assert database.execute("select count(*) from t").fetchone() == (count,)
            done = place.world(f"sqlite3 {name} 'select count(*) from t'")
            assert done.stdout == b"%d\n" % (count - 10)
            database.execute("insert into t values(null, 'by the host', '')")
        finally:
            database.close()
    refused = place.verb("apply", "--yes")
    assert refused.returncode != 0 and b"host.db" in refused.stdout + refused.stderr
    assert b"wal.db" in refused.stdout + refused.stderr


def _postgres():
    """Where Debian has the server's programs."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    if not found:
        need("initdb", "postgres", "pg_ctl", "pgbench")
    return os.path.dirname(found[-1])


#: a place for a socket, which an apply would ask about
_RUN = "run=$(mktemp -d /tmp/substrate-habit.XXXXXX); trap 'rm -rf $run' EXIT\n"


def _server():
    """Texts that start the server on a socket of its own, and stop it."""
    begin = _RUN + (
        f"export PATH={_postgres()}:$PATH PGHOST=$run PGDATABASE=postgres PGPORT=5432\n"
        "pg_ctl -s -D data -w -t 60 -l log -o \"-k $run -c listen_addresses=''\" start\n"
    )
    return begin, "pg_ctl -s -D data -w -m fast stop\n"


_ASK = (
    "psql -Atc 'select count(*), sum(delta) from pgbench_history'; pg_amcheck --install-missing\n"
)
_CHECK = "pg_checksums -D data | grep -i bad\n"


def test_postgresql_over_layers_crashes_and_the_apply(user):
    """As the rootless user: the server refuses root."""
    user.forget()
    place = Place(caller=user, setup="mkdir data")
    begin, end = _server()
    place.make()
    before = place.listing()
    stamps = tree_listing.stamps(user.work)

    def world(step):
        done = place.world(step)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()
        return done.stdout

    world(
        f"export PATH={_postgres()}:$PATH; initdb -D data -A trust -k --locale=C.UTF-8 >/dev/null\n"
        "printf 'fsync = off\\nshared_buffers = 8MB\\n' >> data/postgresql.conf\n"
    )
    out = world(
        begin + "pgbench -q -i -s 1 2>/dev/null; pgbench -n -c 2 -t 50 >/dev/null\n" + _ASK + end
    )
    assert out.startswith(b"100|")
    assert world(begin + "pgbench -n -c 2 -t 50 >/dev/null\n" + _ASK + end).startswith(b"200|")

    # killed with the server at work: what was committed is there when the next one starts
    process = user.start(
        *(
            "-c",
            place.text(
                begin + "pgbench -n -c 2 -t 50 >/dev/null; echo ready; pgbench -n -T 60 >&2"
            ),
        )
    )
    with killed(process):
        assert process.stdout.readline() == b"ready\n"
    count = int(world("rm -f data/postmaster.pid\n" + begin + _ASK + end).partition(b"|")[0])
    assert count >= 300
    assert world(f"export PATH={_postgres()}:$PATH\n" + _CHECK) == b"Bad checksums:  0\n"

    assert not differing(tree_listing.stamps(user.work), stamps), "the host was touched"
    shown = with_times_that_count(place.seen(), before)
    named = place.pending()
    place.apply()
    after = with_times_that_count(place.listing(), before)
    must_agree(after, shown, "applied", "shown in the world")
    must_agree(named, changes(before, after), "named by diff", "differing on the host")
    done = place.plainly(begin + _ASK + end + _CHECK)
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout.partition(b"|")[0]) == count
    # and on: the host's own data is a world's lower now
    assert (
        int(world(begin + "pgbench -n -t 10 >/dev/null\n" + _ASK + end).partition(b"|")[0])
        == count + 10
    )
    assert place.verb("discard", "--yes").returncode == 0


def _redis():
    """The server and the checker are one program that asks for its name."""
    need("redis-cli", "redis-check-rdb")
    return (
        _RUN + "(exec -a redis-server redis-check-rdb --port 0 --unixsocket $run/s --appendonly yes"
        " --appendfsync always --dir $PWD --save '' >log 2>&1) &\n"
        'ask() { redis-cli -s $run/s "$@"; }; until ask ping >/dev/null 2>&1; do :; done\n'
    )


def test_redis_with_its_log_of_commands(caller):
    """Killed with its world, then found by the host's server."""
    place = Place(caller=caller, setup="mkdir data")
    begin = "cd data; " + _redis()
    place.make()
    texts = (
        "for n in $(seq 50); do echo set key$n value$n; done | ask >/dev/null; ask dbsize; ask shutdown; wait",
        "ask bgrewriteaof >/dev/null; ask set one 1; ask del key1; ask dbsize; ask shutdown; wait",
    )
    outputs = [place.world(begin + text).stdout.split() for text in texts]
    assert outputs == [[b"50"], [b"OK", b"1", b"50"]]
    process = caller.start("-c", place.text(begin + "ask set last 1 >/dev/null; echo ready; wait"))
    with killed(process):
        assert process.stdout.readline() == b"ready\n"
    done = place.world(begin + "ask get last; ask dbsize; ask shutdown; wait")
    assert done.stdout.split() == [b"1", b"51"], done.stderr
    place.apply()
    done = place.plainly(begin + "ask get last; ask get key7; ask dbsize; ask shutdown; wait")
    assert done.stdout.split() == [b"1", b"value7", b"51"], done.stderr
