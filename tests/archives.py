"""Archives for tests."""

import io
import zipfile


def zipped(members: dict[str, bytes]) -> bytes:
    """A zip archive of `{name: content}`."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()
