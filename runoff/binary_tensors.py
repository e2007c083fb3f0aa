"""The binary tensor data extension of the Open Inference Protocol; tritonclient speaks it unless told not to.

A body is JSON, and after it the data of those tensors whose parameters have a `binary_data_size`, in their
order: row-major and little-endian, text as its length in four bytes and UTF-8. A header says where the JSON
ends. https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from runoff.dialects import Inference, Values
from runoff.problems import Malformed

HEADER = "Inference-Header-Content-Length"
MEDIA_TYPE = "application/octet-stream"
NAME = "binary_tensor_data"

DTYPES = {
    "BOOL": "?",
    **{f"{'U' * unsigned}INT{8 * n}": f"<{'iu'[unsigned]}{n}" for unsigned in (0, 1) for n in (1, 2, 4, 8)},
    **{f"FP{8 * n}": f"<f{n}" for n in (2, 4, 8)},
}


def split(content: bytes, header: str) -> tuple[bytes, bytes]:
    """The JSON of a body, and the data after it.

    Raises:
        Malformed: the header is not the length of a part of the body.
    """
    if not header.isdecimal() or int(header) > len(content):
        raise Malformed(f"the header {HEADER} must be the length of the body's JSON in bytes")
    return content[: int(header)], content[int(header) :]


def fill(body: Any, data: bytes) -> None:
    """Give the tensors of a request the values that came after it.

    Raises:
        Malformed: the sizes of the tensors are not those of the data, or a datatype is not known.
    """
    tensors = body.get("inputs") if isinstance(body, dict) else None
    for tensor in tensors if isinstance(tensors, list) else ():
        size = _parameter(tensor, "binary_data_size")
        if size is None:
            continue
        if type(size) is not int or not 0 <= size <= len(data):
            raise Malformed(f"binary_data_size must be a number of bytes that follow, at most {len(data)}")
        tensor["data"] = _values(data[:size], tensor.get("datatype"))
        data = data[size:]
    if data:
        raise Malformed(f"{len(data)} bytes after the JSON belong to no tensor")


def pack(answer: Inference, request: Any) -> tuple[bytes, int] | None:
    """An answer with the tensors that a request wants as binary data, and the length of its JSON.

    None where it wants none.
    """
    usual = _parameter(request, "binary_data_output")
    wanted = {each["name"]: _parameter(each, "binary_data", usual) for each in request.get("outputs") or ()}
    outputs: list[dict[str, Any]] = []
    data = b""
    for output in answer["outputs"]:
        told: dict[str, Any] = dict(output)
        if wanted.get(output["name"], usual) is True:
            values = np.array(told.pop("data"), DTYPES[output["datatype"]]).tobytes()
            told["parameters"] = {"binary_data_size": len(values)}
            data += values
        outputs.append(told)
    if not data:
        return None
    head = json.dumps({**answer, "outputs": outputs}).encode()
    return head + data, len(head)


def _parameter(of: Any, name: str, usual: Any = None) -> Any:
    parameters = of.get("parameters") if isinstance(of, dict) else None
    return parameters.get(name, usual) if isinstance(parameters, dict) else usual


def _values(data: bytes, datatype: Any) -> Values:
    if datatype == "BYTES":
        return _texts(data)
    dtype = DTYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None or len(data) % np.dtype(dtype).itemsize:
        raise Malformed(f"binary data of the datatype {str(datatype)[:40]} cannot be read")
    values = np.frombuffer(data, dtype)
    return values if values.dtype.kind in "iuf" else values.tolist()


def _texts(data: bytes) -> list[str]:
    texts, at = [], 0
    try:
        while at < len(data):
            (length,) = struct.unpack_from("<I", data, at)
            text = data[at + 4 : at + 4 + length]
            if len(text) < length:
                raise Malformed("a text in a tensor of BYTES is cut off")
            texts.append(text.decode())
            at += 4 + length
    except (struct.error, UnicodeDecodeError):
        raise Malformed("a tensor of BYTES must hold lengths in four bytes and UTF-8") from None
    return texts
