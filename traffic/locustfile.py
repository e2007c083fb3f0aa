"""For those who use Locust: held-out clients, each of whom asks once a second.

    pip install -e '.[locust]'
    locust -f traffic/locustfile.py --host http://127.0.0.1:8000

The seed is in RUNOFF_SEED, and the key, where the router has keys, in RUNOFF_OPERATOR_KEY. Locust's users
wait for their answers, and it does not correct for that: `runoff load` does.
"""

from __future__ import annotations

import os
import sys

from locust import FastHttpUser, constant_pacing, task

from traffic.load import USER_SECONDS
from traffic.plan import LOAD_TAG, Plan

KEY = os.environ.get("RUNOFF_OPERATOR_KEY")
REQUESTS = Plan(seed=int(os.environ.get("RUNOFF_SEED") or 1)).at_once(sys.maxsize)


class Client(FastHttpUser):
    """Somebody who applies for credit again and again."""

    wait_time = constant_pacing(USER_SECONDS)

    @task
    def asks(self) -> None:
        """Ask for a prediction, tagged as a load test."""
        request = next(REQUESTS)
        headers = {
            "Content-Type": "application/json",
            "X-Request-ID": request.id,
            "X-Unit-ID": request.unit,
            "X-Traffic-Tag": LOAD_TAG,
        }
        if KEY:
            headers["Authorization"] = f"Bearer {KEY}"
        self.client.post("/predict", data=request.body.decode(), headers=headers)
