"""API and page as one ASGI application behind the guard."""

import os

# Before Gradio is imported, which asks its makers' servers otherwise.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
import gradio as gr  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from starlette.exceptions import HTTPException  # noqa: E402

from ospnext_ms.serving.api import http_error, routes, too_large  # noqa: E402
from ospnext_ms.serving.guard import Guard, TooLarge  # noqa: E402
from ospnext_ms.serving.page import CSS, THEME, make_page  # noqa: E402


def make_app(desk, config):
    """ASGI application for a desk.Desk and a ServeConfig."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, routes=routes(desk, config),
                  exception_handlers={HTTPException: http_error, TooLarge: too_large})
    app = gr.mount_gradio_app(app, make_page(desk, config), path="/", theme=THEME, css=CSS, footer_links=[],
                              show_error=True, ssr_mode=False, enable_monitoring=False, max_file_size=1)
    return Guard(app, config.serve)
