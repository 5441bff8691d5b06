"""HTTP in the form of OpenAI's videos: /v1/videos, so that its clients work with another base address.

POST /v1/videos makes a job (JSON or multipart fields, see requests.VideoRequest); GET /v1/videos and /v1/videos/ID tell
of jobs; GET /v1/videos/ID/content is the mp4; DELETE /v1/videos/ID ends and forgets a job; GET /v1/models has the one
model. Errors are one line, in OpenAI's form, with 4xx; with 507 where the server's disk is full.
"""

import json
import math

from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Route

from ospnext_ms.serving.desk import CannotKeep, QueueFull
from ospnext_ms.serving.guard import TooLarge, error_body
from ospnext_ms.serving.requests import MODEL, read_request

_NUMBERS = {"seed": int, "steps": int, "frames": int, "guidance": float, "seconds": float}
_STATES = {"cancelled": "failed"}
MOST_LISTED = 100


def routes(desk, config) -> list[Route]:
    """The API of a desk.Desk, with the limits of a ServeConfig."""

    async def create(request):
        try:
            mapping = await _body(request)
            settings = read_request(mapping, config)
        except TooLarge as error:
            return _error(413, str(error), "too_large")
        except (ValueError, RecursionError) as error:
            return _error(400, str(error) or "the body is nested too deeply", "invalid_value")
        try:
            return JSONResponse(_told(desk.submit(settings)))
        except QueueFull as error:
            return _error(429, str(error), "queue_full", {"Retry-After": str(max(1, math.ceil(error.seconds)))})
        except CannotKeep as error:
            return _error(507, str(error), "cannot_keep")

    async def listed(request):
        return _listed(desk.views(), request.query_params)

    async def retrieve(request):
        view = desk.view(request.path_params["id"])
        return JSONResponse(_told(view)) if view else _missing(request.path_params["id"])

    async def content(request):
        id = request.path_params["id"]
        path, view = desk.video(id), desk.view(id)
        if view is None:
            return _missing(id)
        if path is None:
            return _error(409, f"{id} is {view.job.state}; it has no video", "not_ready")
        return FileResponse(path, media_type="video/mp4", filename=f"{id}.mp4", content_disposition_type="inline")

    async def delete(request):
        id = request.path_params["id"]
        if not desk.delete(id):
            return _missing(id)
        return JSONResponse({"id": id, "object": "video.deleted", "deleted": True})

    async def models(request):
        return JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "ospnext_ms",
                                                         "created": 0}]})

    return [Route("/v1/models", models), Route("/v1/videos", create, methods=["POST"]), Route("/v1/videos", listed),
            Route("/v1/videos/{id}", retrieve), Route("/v1/videos/{id}", delete, methods=["DELETE"]),
            Route("/v1/videos/{id}/content", content)]


async def http_error(request, error: HTTPException):
    """What the web framework refuses (unknown addresses, methods), in the same form."""
    return _error(error.status_code, f"{request.method} {request.url.path[:80]}: {error.detail}", "not_found")


async def too_large(request, error: TooLarge):
    """A body that was longer than it said."""
    return _error(413, str(error), "too_large")


async def _body(request):
    """The keys and values of a request; ValueError where it has none."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        try:
            async with request.form(max_files=0, max_fields=32) as form:
                return {name: _number(name, value) for name, value in form.items()}
        except (HTTPException, MultiPartException) as error:
            raise ValueError(f"the form cannot be read: {getattr(error, 'detail', None) or error}") from error
    try:
        mapping = json.loads(await request.body())
    except UnicodeDecodeError as error:
        raise ValueError("the body is not JSON: it is no UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"the body is not JSON: {error}") from error
    if not isinstance(mapping, dict):
        raise ValueError('the body must be an object, for example {"prompt": "a bright 7 drifting up"}')
    # A text in OpenAI's API, whatever carries it.
    if isinstance(mapping.get("seconds"), str):
        mapping["seconds"] = _number("seconds", mapping["seconds"])
    return mapping


def _number(name, text):
    """A form's value as JSON would have it."""
    if name not in _NUMBERS:
        return text
    try:
        return _NUMBERS[name](text)
    except ValueError:
        return text


def _told(view) -> dict:
    job, settings = view.job, view.job.settings
    told = {
        "id": job.id, "object": "video", "model": MODEL, "status": _STATES.get(job.state, job.state),
        "progress": math.floor(100 * view.progress), "created_at": int(job.created_at),
        "completed_at": job.completed_at and int(job.completed_at), "expires_at": None, "remixed_from_video_id": None,
        "prompt": settings["prompt"], "seconds": f"{settings['frames'] / settings['fps']:.6g}",
        "size": settings["size"], "error": None,
        # Beside what OpenAI tells.
        "queue_position": view.position,
        "seconds_left": None if view.seconds_left is None else round(view.seconds_left, 1), "settings": settings,
    }
    if job.state == "failed":
        told["error"] = {"code": "failed", "message": job.error}
    elif job.state == "cancelled":
        told["error"] = {"code": "cancelled", "message": "cancelled"}
    return told


def _listed(views, query):
    """The answer that lists jobs as ?limit, ?after and ?order say. `views`: of all jobs, the newest last."""
    try:
        limit = int(query.get("limit", 20))
        if not 1 <= limit <= MOST_LISTED or query.get("order", "desc") not in ("asc", "desc"):
            raise ValueError
    except ValueError:
        return _error(400, f"limit must be from 1 to {MOST_LISTED}, order asc or desc", "invalid_value")
    if query.get("order", "desc") == "desc":
        views = views[::-1]
    after = query.get("after")
    if after:
        place = next((i for i, view in enumerate(views) if view.job.id == after), None)
        if place is None:
            return _missing(after)
        views = views[place + 1 :]
    data = [_told(view) for view in views[:limit]]
    return JSONResponse({"object": "list", "data": data, "has_more": len(views) > limit,
                         "first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None})


def _missing(id):
    return _error(404, f"there is no video {id[:60]!r}", "not_found")


def _error(status, message, code, headers=None):
    return JSONResponse(error_body(message, code), status, headers)
