"""What comes from outside is decoded as JPEG, PNG or WebP alone, though local folders may hold more."""

import io

import pytest
from PIL import Image

pytest.importorskip("sklearn")

from kshot.apps.classify.serve.session import Session


def test_a_session_decodes_three_formats_alone():
    session, image, good = Session("photos-small"), Image.new("RGB", (8, 8), (200, 30, 60)), []
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "ICO", "PCX"):
        out = io.BytesIO()
        image.save(out, kind)
        wrong = session.decoded([out.getvalue()])[1][0]
        good += [] if wrong else [kind]
        assert not wrong or wrong == "not a JPEG, PNG or WebP image"
    assert good == ["JPEG", "PNG", "WEBP"]
