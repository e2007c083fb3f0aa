"""A router by hand with FastAPI: splits by weight, forwards over connections that stay open, records nothing.

CLIENT says by which library it asks: aiohttp or httpx.
"""

import os
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import httpx
from fastapi import FastAPI, Request, Response

VARIANTS = (("A", os.environ["MODEL_A_URL"], 80), ("B", os.environ["MODEL_B_URL"], 20))
WEIGHTS = [weight for *_, weight in VARIANTS]
PASSED = ("content-type", "x-model-name", "x-model-version")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    if os.environ["CLIENT"] == "aiohttp":
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as app.state.session:
            yield
    else:
        async with httpx.AsyncClient(timeout=2) as app.state.client:
            yield


app = FastAPI(lifespan=lifespan)


async def ask(url: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    if os.environ["CLIENT"] == "aiohttp":
        async with app.state.session.post(f"{url}/predict", data=body, headers=headers) as answer:
            return answer.status, answer.headers, await answer.read()
    answer = await app.state.client.post(f"{url}/predict", content=body, headers=headers)
    return answer.status_code, answer.headers, answer.content


@app.post("/predict")
async def predict(request: Request) -> Response:
    [(name, url, _)] = random.choices(VARIANTS, WEIGHTS)
    request_id = request.headers.get("x-request-id") or uuid.uuid4().hex
    sent = {"Content-Type": "application/json", "X-Request-ID": request_id}
    status, headers, body = await ask(url, await request.body(), sent)
    passed = {key: headers[key] for key in PASSED if key in headers}
    return Response(body, status, passed | {"X-Request-ID": request_id, "X-Variant": name})
