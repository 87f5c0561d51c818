"""Run in a world by test_join_inside.py: asks at the world's own door, and prints what came."""

import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from join_client import Client

DOOR = "/run/substrate"


def shown(kind, fields):
    return [kind.decode(), [field.decode() for field in fields]]


def main():
    what, *words = sys.argv[1:]
    client = Client(DOOR, "inside")
    if what == "shim":
        client.execute(*words, cwd=os.getcwd(), fds=(), mode="shim", closed=[0, 1, 2])
        kind, fields = client.receive()
        print(json.dumps(shown(kind, fields)), flush=True)
        os.execvp(words[0], words)
    elif what == "command":
        client.execute(*words, cwd=os.getcwd(), fds=(0, 1, 2))
        kind, fields, before = client.answer()
        print(json.dumps([shown(kind, fields), [shown(*each) for each in before]]))
    elif what == "verb":
        print(json.dumps(shown(*client.verb(words[0], **json.loads(words[1])))))
    elif what == "hostile":
        for text in (
            '{"type":[],"body":{},"producer":"x","producer_seq":0}',
            '{"type":"annotation","body":{"text":"x","labels":{"a":%s}},"producer":"x","producer_seq":0}'
            % ("[" * 900 + "]" * 900),
        ):
            client.send(b"V", "event", text)
            print(shown(*client.receive())[0], flush=True)
            client = Client(DOOR, "inside")
    elif what == "calls":
        for _ in range(int(words[0])):
            client.execute(*words[2:], cwd=words[1], fds=(0, 1, 2))
            print(client.answer()[0].decode(), flush=True)
            client = Client(DOOR, "inside")
    elif what == "deep":
        for path in (os.getcwd() + "/a" * 2_000_000, os.getcwd()):
            client.execute("/bin/true", cwd=path, fds=(), mode="shim", closed=[0, 1, 2])
            print(json.dumps(shown(*client.receive())), flush=True)
            client = Client(DOOR, "inside", timeout=20)
    elif what == "slow":
        words = b"-S", b"a '" + b"b " * 2_000_000 + b"'"
        for _ in range(60):
            client.execute("env", *words, cwd="/", fds=(), mode="shim", closed=[0, 1, 2])
            print(json.dumps(shown(*client.receive())), flush=True)
            client = Client(DOOR, "inside")
    elif what == "denied":
        for _ in range(int(words[0])):
            client.execute(*words[1:], cwd="/", fds=(), mode="shim", closed=[0, 1, 2], environ={})
            print(client.answer()[0].decode(), flush=True)
            client = Client(DOOR, "inside")
    elif what == "producers":
        for number in range(int(words[0])):
            event = {"type": "annotation", "body": {"text": "said", "labels": {}}}
            event |= {"producer": f"p{number}", "producer_seq": 0}
            client.send(b"V", "event", json.dumps(event))
            print(shown(*client.receive())[0])
            client.close()
            client = Client(DOOR, "inside")
    elif what == "flood":
        for number in range(int(words[0])):
            body = {"text": "x" * 15000, "labels": {}}
            event = {"type": "annotation", "body": body, "producer": "f", "producer_seq": number}
            client.send(b"V", "event", json.dumps(event))
            print(*shown(*client.receive()))
    elif what == "events":
        for number in (0, 1, 5):
            event = {"type": "annotation", "body": {"text": "said", "labels": {"number": number}}}
            client.send(
                b"V", "event", json.dumps({**event, "producer": "test", "producer_seq": number})
            )
            print(shown(*client.receive())[0])
        client.close()
    elif what == "place":
        found = []
        for act in (
            lambda: os.unlink(DOOR + "/inside"),
            lambda: open(DOOR + "/mine", "w"),
            lambda: os.rename(DOOR, "/run/other"),
            lambda: subprocess.run(["umount", DOOR], check=True, capture_output=True),
        ):
            try:
                act()
                found.append("done")
            except (OSError, subprocess.CalledProcessError) as error:
                found.append(type(error).__name__)
        print(json.dumps([found, os.stat(DOOR + "/inside").st_uid, os.listdir(DOOR)]))


main()
