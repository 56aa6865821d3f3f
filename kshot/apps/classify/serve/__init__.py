"""The classifier as a service: a page (gradio) and a REST interface (FastAPI) over the same sessions. `kshot[web]`.

app = create_app()          # an ASGI application
server(app).run()           # uvicorn, bounded in connections and patience; what `kshot serve` does
"""

from kshot.apps.classify.serve.app import create_app
from kshot.apps.classify.serve.http import bounded_log, server
from kshot.apps.classify.serve.session import LIMITS, Limits, Refused, Session

__all__ = ["LIMITS", "Limits", "Refused", "Session", "bounded_log", "create_app", "server"]
