"""An approver's own server: answers what a webhook is asked, on loopback."""

import hashlib
import hmac
import http.server
import json
import threading


def signature(key, what, *parts):
    text = "\n".join((what, *parts)).encode()
    return "sha256=" + hmac.new(key, text, hashlib.sha256).hexdigest()


class Hook:
    """A server that answers as `answer(request, question)` says: a dict is signed and sent, a tuple is
    (status, headers, bytes)."""

    def __init__(self, key, context=None):
        self.key, self.requests, self.questions = key, [], []
        self.answer = lambda request, question: {"answer": "allow"}
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.questions.append(json.loads(body))
                self._tell("question", body.decode())

            def do_GET(self):
                self._tell("poll", "")

            def _tell(self, what, body):
                stamp = self.headers["X-Substrate-Timestamp"]
                good = signature(hook.key, what, stamp, self.path, body)
                signed = self.headers["X-Substrate-Signature"] == good
                hook.requests.append((self.command, self.path, signed))
                told = hook.answer(hook.requests[-1], hook.questions[-1])
                if isinstance(told, dict):
                    question = hook.questions[-1]
                    whole = {
                        "schema": "substrate.approval-answer/1",
                        "id": question["id"],
                        "nonce": question["nonce"],
                        **told,
                    }
                    text = json.dumps(whole)
                    made = signature(hook.key, "answer", text)
                    told = (200, {"X-Substrate-Signature": made}, text.encode())
                status, headers, content = told
                self.send_response(status)
                for name, text in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_):
                pass  # a client that is gone

        self.server = Server(("127.0.0.1", 0), Handler)
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
