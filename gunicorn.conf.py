"""How every service of the house runs under gunicorn; it reads this file by itself.

What differs between them is said on the command line, as in the Procfile.
"""

import os

# One row is predicted faster by one thread than a pool of them can be woken. Set before numpy is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
# Workers share the memory of what is loaded once, and a service that cannot start says so at once.
preload_app = True
# Threads, since the router and the dashboard mostly wait for others.
worker_class = "gthread"
threads = 8
# Longer than any client of ours keeps an idle connection, so that it is not closed under its hands.
keepalive = 75
# A worker that hangs is replaced after `timeout`; one that is asked to stop may finish what it is at.
timeout = 30
graceful_timeout = 10
# The answers carry their request id and timing, and the ledger holds the rest.
accesslog = None
control_socket_disable = True
