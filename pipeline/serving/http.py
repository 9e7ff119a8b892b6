"""The HTTP side of the service: routes, what a request may look like, errors as JSON."""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pydantic_core
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pipeline.serving.arrow_stream import MEDIA_TYPE as ARROW
from pipeline.serving.body import RequestError, shown
from pipeline.serving.metrics import CONTENT_TYPE, exposition
from pipeline.serving.service import ScoringService

log = logging.getLogger(__name__)

# Bodies that one process holds at the same time; rows that wait are bounded by
# serving.batching.queue_rows.
REQUESTS_AT_ONCE = 512

_LONGEST_KEY = 256
_SHOWN_FIELD = 100
_CLIENT_WENT_AWAY = 499

Exposition = Callable[[], Awaitable[bytes]]


class ScoringHttp:
    """Answers HTTP requests; every path out of here is a JSON body or the metrics.

    Args:
        service: what scores.
        exposition: text of /metrics, where other processes' metrics belong to it too.
    """

    def __init__(self, service: ScoringService, exposition: Exposition | None = None) -> None:
        self._service = service
        self._exposition = exposition or self._own_metrics
        self._under_way = 0
        self._routes = {
            "/score": ("POST", self._score),
            "/health": ("GET", self._health),
            "/metrics": ("GET", self._metrics),
        }

    async def respond(self, request: Request) -> Response:
        """The answer to a request; nothing is raised."""
        outcome = "ok"
        try:
            return await self._route(request)
        except RequestError as error:
            outcome = error.code
            return _error_response(error)
        except ClientDisconnect:
            outcome = "client_went_away"
            return Response(status_code=_CLIENT_WENT_AWAY)
        except asyncio.CancelledError:
            outcome = "client_went_away"
            raise
        except Exception:
            outcome = "internal_error"
            number = uuid.uuid4().hex[:12]
            log.exception("request %s failed", number)
            message = f"the service failed to answer; its log has the reason under {number}"
            return _error_response(RequestError(500, "internal_error", message))
        finally:
            if request.url.path == "/score":
                self._service.metrics.requests.labels(outcome).inc()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application, for servers other than Ray Serve's proxies."""
        if scope["type"] == "http":
            response = await self.respond(Request(scope, receive))
            await response(scope, receive, send)

    async def _route(self, request: Request) -> Response:
        route = self._routes.get(request.url.path)
        if route is None:
            there = ", ".join(f"{method} {path}" for path, (method, _) in self._routes.items())
            raise RequestError(404, "no_such_path", f"there is {there}")
        method, answer = route
        if request.method != method:
            raise RequestError(405, "wrong_method", f"use {method} here")
        return await answer(request)

    async def _score(self, request: Request) -> Response:
        arrow = _is_arrow(request)
        name = _version_asked_for(request)
        if self._under_way >= REQUESTS_AT_ONCE:
            raise RequestError(503, "overloaded", "too many requests are under way; try again")
        self._under_way += 1
        try:
            body = await self._body(request)
            scored = await self._service.score(body, key=self._key(request), name=name, arrow=arrow)
        finally:
            self._under_way -= 1
        if ARROW in request.headers.get("accept", "").lower():
            return Response(scored.arrow(), media_type=ARROW)
        return Response(scored.json(), media_type="application/json")

    async def _health(self, request: Request) -> Response:
        ready, tree = self._service.health()
        return _json(tree, 200 if ready else 503)

    async def _metrics(self, request: Request) -> Response:
        return Response(await self._exposition(), headers={"content-type": CONTENT_TYPE})

    async def _own_metrics(self) -> bytes:
        return exposition({"0": self._service.metrics.families()})

    def _key(self, request: Request) -> str | None:
        header = self._service.config.request_key
        key = request.headers.get(header) if header else None
        if key is not None and len(key) > _LONGEST_KEY:
            raise RequestError(
                431, "long_key", f"header {header} may have {_LONGEST_KEY} characters"
            )
        return key

    async def _body(self, request: Request) -> bytes:
        limits = self._service.config.limits
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:18]) > limits.body_bytes:
            raise _too_large(limits.body_bytes)
        try:
            async with asyncio.timeout(limits.body_seconds):
                parts: list[bytes] = []
                size = 0
                async for part in request.stream():
                    size += len(part)
                    if size > limits.body_bytes:
                        raise _too_large(limits.body_bytes)
                    parts.append(part)
        except TimeoutError:
            raise RequestError(
                408, "slow_body", f"the body took longer than {limits.body_seconds:g} s"
            ) from None
        return b"".join(parts)


def _too_large(limit: int) -> RequestError:
    return RequestError(413, "body_too_large", f"a body may have {limit} bytes")


def _is_arrow(request: Request) -> bool:
    """Whether the body is an Arrow stream; if not, it is JSON."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError(415, "content_encoding", "send the body uncompressed")
    kind = request.headers.get("content-type", "application/json").lower()
    media, _, parameters = kind.partition(";")
    if media.strip() == ARROW:
        return True
    charset = parameters.partition("charset=")[2].strip(' "')
    if media.strip() != "application/json" or charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise RequestError(415, "media_type", f"send application/json in UTF-8, or {ARROW}")
    return False


def _version_asked_for(request: Request) -> str | None:
    given = request.query_params.multi_items()
    if not given:
        return None
    wrong = [name for name, _ in given if name != "version"]
    if wrong or len(given) > 1:
        what = shown(wrong[0]) if wrong else "version twice"
        raise RequestError(400, "query", f"the query may hold `version` once; it holds {what}")
    return given[0][1]


def _error_response(error: RequestError) -> Response:
    tree: dict[str, Any] = {"code": error.code, "message": str(error)}
    if error.field is not None:
        tree["field"] = error.field[:_SHOWN_FIELD]
    if error.row is not None:
        tree["row"] = error.row
    response = _json({"error": tree}, error.status)
    if error.status == 503:
        response.headers["retry-after"] = "1"
    if error.code in ("body_too_large", "slow_body"):
        # What is left of the body is not read, so the connection cannot be used again.
        response.headers["connection"] = "close"
    return response


def _json(tree: Any, status: int) -> Response:
    return Response(pydantic_core.to_json(tree), status, media_type="application/json")
