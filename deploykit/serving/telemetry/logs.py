"""The log of a service process: one JSON object per line, one line per request, and never a text.

Paths are logged as the label of their route, so that odd paths cannot write into the log.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from deploykit.serving.call import Call

NEVER_READY = "this service will not become ready"  # `launch` looks for this text in the log

access = logging.getLogger("deploykit.access")


class Lines(logging.Formatter):
    """Renders a record as one line of JSON; a dictionary as message becomes its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        content: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        content |= record.msg if isinstance(record.msg, dict) else {"message": record.getMessage()}
        if record.exc_info:
            content["error"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=False)


def configure() -> None:
    """Sends the log of deploykit to standard output, as lines of JSON."""
    logger = logging.getLogger("deploykit")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Lines())
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def request_line(call: Call, route: str, status: int, sent: int, seconds: float) -> None:
    """Logs one request.

    Args:
        call: the request.
        route: label of its route.
        status: of the response.
        sent: bytes of the response's body.
        seconds: from request to response.
    """
    access.info(
        {
            "request": call.id,
            **({"trace": call.trace} if call.trace else {}),
            "client": call.client.name,
            "key": call.client.key,
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 2),
            "tokenize_ms": round(call.tokenize_s * 1000, 2),
            "queue_ms": round(call.queue_s * 1000, 2),
            "inference_ms": round(call.inference_s * 1000, 2),
            "texts": call.items,
            "tokens": call.tokens,
            "bytes": sent,
        }
    )
