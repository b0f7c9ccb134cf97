"""Files from forms: read once, bounded, their names made bare."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import PurePosixPath
from typing import Any

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from lightbox import web
from lightbox.api.problems import RefusalError

# Bytes of a file that are kept in memory while it arrives; what is more goes through a file on disk.
IN_MEMORY = 4 * 1024 * 1024


def plain_name(name: str) -> str:
    """Return a file's bare name, without folders and control characters, at most 200 characters."""
    bare = PurePosixPath(name.replace("\\", "/")).name
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", "", bare).strip()[-200:]


def megabytes(count: int) -> str:
    """Return a number of bytes for people."""
    return f"{count / 2**20:.0f} MB"


def too_large(limit: int) -> RefusalError:
    """Return the refusal of a file over a limit in bytes."""
    return RefusalError(413, "too_large", f"The file is larger than {megabytes(limit)}. Send a smaller one.")


@asynccontextmanager
async def files(request: Request, field: str, most: int, largest: RefusalError) -> AsyncIterator[list[UploadFile]]:
    """Give the files in one field of a form, and forget them afterwards.

    Args:
        request: the request, whose body is read.
        field: the form's field.
        most: largest number of files in the whole form.
        largest: what a body over the limit is answered with.

    Raises:
        RefusalError: the form is malformed, has no file or more than ``most``, or is too large.
    """
    if parse_options_header(request.headers.get("content-type"))[0] != b"multipart/form-data":
        raise RefusalError(400, "no_file", f"No file uploaded: send a form with the file in the field '{field}'")
    parser = MultiPartParser(request.headers, request.stream(), max_files=most, max_fields=20)
    parser.spool_max_size = IN_MEMORY
    try:
        form = await parser.parse()
    except web.BodyTooLargeError:
        raise largest from None
    except MultiPartException as error:
        if "Too many files" in error.message:
            count = "one file" if most == 1 else f"at most {most} files"
            raise RefusalError(400, "too_many", f"Too many files: send {count} in the form field '{field}'") from None
        raise malformed(field) from None
    # The parser passes on what its library raises on odd headers.
    except (LookupError, ValueError):
        raise malformed(field) from None
    try:
        found = [file for file in form.getlist(field) if isinstance(file, UploadFile)]
        if not found:
            raise RefusalError(400, "no_file", f"No file uploaded: send it in the form field '{field}'")
        yield found
    finally:
        await form.close()


def malformed(field: str) -> RefusalError:
    """Return the refusal of a body that is no form."""
    return RefusalError(400, "malformed", f"The upload is malformed: send one file in the form field '{field}'")


async def content(file: UploadFile, limit: int) -> bytes:
    """Return what is in a file.

    Raises:
        RefusalError: it is larger than ``limit`` bytes.
    """
    if file.size is not None and file.size > limit:
        raise too_large(limit)
    return await file.read()


def form_of(field: str, most: int = 1) -> dict[str, Any]:
    """Return the documentation of a form with files."""
    file: dict[str, Any] = {"type": "string", "format": "binary", "description": "A PNG, JPEG or DICOM file."}
    if most > 1:
        file = {"type": "array", "items": file, "minItems": 1, "maxItems": most}
    schema = {"type": "object", "required": [field], "properties": {field: file}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
