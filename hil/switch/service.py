"""The ``provider`` role of a worker."""

from collections.abc import Callable, Mapping
from typing import Any


def serve(emit: Callable[[dict[str, Any]], None]) -> Mapping[str, Callable[..., Any]]:
    return {}
