"""The log of a service process: one JSON object a line, one line a request, and never a text.

Paths are logged as the route's label, so that nobody can write into the log by asking for odd paths.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from deploykit.serving.call import Call

NEVER_READY = "this service will not become ready"  # what `launch` looks for

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
    """Sends everything that deploykit logs to the standard output, as lines of JSON."""
    logger = logging.getLogger("deploykit")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Lines())
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def request_line(call: Call, route: str, status: int, sent: int, seconds: float) -> None:
    """Logs one request.

    Args:
        call: who asked, and what it took.
        route: the route's label.
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
