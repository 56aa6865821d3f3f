"""The classifier as a service: a page (gradio) and a REST interface (FastAPI) over the same sessions. `kshot[web]`.

app = create_app()          # an ASGI application; `kshot serve` runs it by uvicorn
"""

from kshot.serve.app import create_app
from kshot.serve.session import LIMITS, Limits, Refused, Session

__all__ = ["LIMITS", "Limits", "Refused", "Session", "create_app"]
