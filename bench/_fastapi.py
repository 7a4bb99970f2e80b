"""Scores as one would write them with FastAPI and Redis: a key, a limit for each second, and answers kept as JSON."""

import time
from typing import Annotated

import uvicorn
from fastapi import FastAPI, Header, HTTPException, Response
from redis.asyncio import Redis

from bench._servers import HOST, bind


def application(path: str, key: str, limit: int) -> FastAPI:
    """The application; ``path``: the unix socket of Redis, ``limit``: requests a second of the only key."""
    keys, redis, app = {key: "bench"}, Redis(unix_socket_path=path, max_connections=64), FastAPI()

    @app.get("/v3/scores/{profile_id}")
    async def score(profile_id: int, x_api_key: Annotated[str, Header()] = "") -> Response:
        owner = keys.get(x_api_key)
        if owner is None:
            raise HTTPException(401)
        bucket = f"limit:{owner}:{int(time.time())}"
        pipeline = redis.pipeline(transaction=False).incr(bucket).expire(bucket, 2).get(str(profile_id))
        used, _, answer = await pipeline.execute()
        if used > limit:
            raise HTTPException(429)
        if answer is None:
            raise HTTPException(404)
        return Response(answer, media_type="application/json")

    return app


def serve(path: str, key: str, limit: int, port: int) -> None:
    """In a process of its own."""
    bind(0)
    app = application(path, key, limit)
    uvicorn.run(app, host=HOST, port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning")
