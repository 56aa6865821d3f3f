"""`kshot serve`: the page and the REST interface."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from kshot.cli._options import POSITIONAL
from kshot.cli._shared import InputError, console, load_torch

__all__ = ["Serve"]


@dataclass(frozen=True)
class Serve:
    """Open the page: teach classes by drawing or dropping images, ask, correct, save; and REST under /v1."""

    classifier: Annotated[Path | None, POSITIONAL] = None
    """A .kshot file that every visit begins with."""
    port: int = 7860
    """0: any that is free."""
    host: str = "127.0.0.1"
    """Where it listens: this machine alone; with another address, set a token."""
    page: bool = True
    """Without it: REST alone."""
    token_from: str | None = None
    """The environment variable that holds the token: for REST "Authorization: Bearer TOKEN", for the page the
    password. None: no token."""

    def run(self) -> int:
        load_torch()
        try:
            from kshot.apps.classify.serve import Refused, bounded_log, create_app, server
        except ImportError as error:
            raise InputError(f"this command needs more: pip install 'kshot[web]' ({error})") from error
        token = None
        if self.token_from is not None and not (token := os.environ.get(self.token_from)):
            raise InputError(f"the environment variable {self.token_from} is empty: put the token into it")
        if self.host not in ("127.0.0.1", "::1", "localhost") and token is None:
            raise InputError(f"--host {self.host} opens it to others: give a token too, --token-from VARIABLE")
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port {self.port}: 0 to 65535")
        begin = self.classifier.read_bytes() if self.classifier is not None else None
        try:
            hosts = ("127.0.0.1", "localhost", "::1") if token is None else ()
            app = create_app(page=self.page, token=token, begin=begin, hosts=hosts)
        except Refused as error:
            raise InputError(f"{self.classifier}: {error}") from error
        with bounded_log():
            running = server(app, self.host, self.port)
            try:
                socket = running.config.bind_socket()
            except SystemExit:
                raise InputError(f"port {self.port} of {self.host} cannot be had: choose another --port") from None
            where = f"http://{self.host}:{socket.getsockname()[1]}"
            console().print(f"{where}{'' if self.page else '/docs'} (end it with Ctrl-C)")
            running.run(sockets=[socket])
        return 0
