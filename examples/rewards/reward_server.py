"""`my_rewards.brevity` as a server, for reward=http: `python reward_server.py 8000`.

What comes in are the keywords of a reward function, as JSON; what goes out are its scores.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from my_rewards import brevity


class Scorer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # one connection for many batches

    def do_POST(self):
        batch = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps({"scores": brevity(**batch)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *words):
        """Prints nothing for each batch."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Scorer).serve_forever()
