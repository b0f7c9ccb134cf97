"""The API, ``lightbox.api.app:app``. Run it with::

    gunicorn --config python:lightbox.gunicorn_conf --bind 0.0.0.0:5000 lightbox.api.app:app

Environment (besides that of :mod:`lightbox.gunicorn_conf`):

``LIGHTBOX_BUNDLE``               the bundle's directory or a link to it (default ``/var/lib/lightbox/model/current``);
                                  may be absent: the API runs, and ``/ready`` answers 503
``LIGHTBOX_REDIS_HOST``, ``_PORT``, ``_USER``  the case store (default 127.0.0.1, 6379, the default user)
``LIGHTBOX_REDIS_PASSWORD_FILE``  file with its password; else ``$CREDENTIALS_DIRECTORY/redis_password``
``LIGHTBOX_RETENTION_DAYS``       days a case is kept (default: until it is deleted)
``LIGHTBOX_MAX_UPLOAD_BYTES``     largest file accepted (default 20 MiB)
``LIGHTBOX_MAX_PIXELS``           largest picture decoded, in pixels (default 50 million)
``LIGHTBOX_CONCURRENCY``          threads of one worker that decode and score images (default 1)
``LIGHTBOX_TOGETHER``             images that one thread scores in one run, if so many wait (default 2)
``LIGHTBOX_QUEUE``                requests that may wait to be classified by one worker (default 16); more are sent away
``LIGHTBOX_THREADS``              threads of one prediction (default 1)
``LIGHTBOX_IMAGE_SIDE``           longest side of the picture that is kept of an upload, in pixels (default 512)
``LIGHTBOX_CORS_ORIGINS``         origins whose pages may use the API, comma separated (default: none), see
                                  :mod:`lightbox.api.cors`
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

import lightbox.dicom  # noqa: F401 - loaded once, in gunicorn's master, so that no request waits for it
from lightbox import web
from lightbox.api import cors, drawn, legacy, v1
from lightbox.api.line import Line
from lightbox.api.problems import Failure, RefusalError, http_error, invalid, refused
from lightbox.api.service import Service, Settings
from lightbox.store import CaseStore

TAGS = [
    {"name": "predictions", "description": "Have images classified."},
    {"name": "cases", "description": "What was classified, and what came of it."},
    {"name": "feedback", "description": "What people say that cases show."},
    {"name": "state", "description": "The process and its model."},
    {"name": "original", "description": 'The routes of the first version; errors are `{"error": "…"}`.'},
]


def create_app(settings: Settings | None = None, store: CaseStore | None = None) -> FastAPI:
    """Return the API; settings and store default to what the environment says. The model is loaded when it starts."""
    settings = settings or Settings.read()
    service = Service(settings, store or CaseStore.from_environment())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.line = Line(service.examine, settings.concurrency, settings.queue, settings.together)
        await anyio.to_thread.run_sync(service.begin)
        yield
        service.store.close()

    def largest_body(scope: Scope) -> int:
        if scope["path"] == drawn.PATH:
            return drawn.largest_body(settings.max_upload_bytes)
        files = v1.BATCH_FILES if scope["path"] == "/v1/predictions/batch" else 1
        return files * settings.max_upload_bytes + web.FORM_OVERHEAD

    app = FastAPI(
        title="Lightbox API",
        version="1",
        lifespan=lifespan,
        openapi_tags=TAGS,
        redirect_slashes=False,
        # Interactive pages would load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.state.prepare = service.prepare
    app.include_router(v1.router)
    app.include_router(legacy.router)
    app.include_router(drawn.router)
    app.add_exception_handler(RefusalError, refused)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_middleware(web.RequestGuard, name="api", max_body=largest_body, failed=Failure)
    cors.allow(app, cors.read_origins())
    return app


app = create_app()
