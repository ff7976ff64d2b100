"""Servers come up one at a time, and nothing of them is left."""

import os
import sys
import urllib.request

import pytest

from benchmarks.cpu_servers import Server, StartFailed, running

# A server with a child that does not listen to signals that ask.
STUBBORN = """
import http.server, signal, subprocess, sys
ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", ignore], stdout=subprocess.PIPE)
child.stdout.readline()

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(child.pid).encode())

http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""


def test_a_server_is_asked_when_it_is_ready_and_gone_with_its_children_afterwards() -> None:
    with running(Server("stubborn", "1", (sys.executable, "-c", STUBBORN))) as up:
        assert up.ready_s > 0
        with urllib.request.urlopen(up.base_url, timeout=5) as answer:
            child = int(answer.read())
        os.kill(child, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_server_that_ends_before_it_is_ready_is_told_with_its_last_words() -> None:
    ends = (sys.executable, "-c", "print('no such model'); raise SystemExit(3)")
    with pytest.raises(StartFailed, match=r"code 3 .*\n.*no such model"), running(Server("ends", "1", ends)):
        pass
