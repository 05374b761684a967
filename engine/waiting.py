"""The line of waiting requests, and who is next.

The rule: requests are admitted in order of arrival, as soon as they fit beside those that run.
One that does not fit yet lets later ones pass, but no more than `MAX_OVERTAKEN` of them; from
then on nobody behind it is admitted before it.

So a large request never holds up small ones for longer than it takes to get in, and is never
starved by them: at most those ahead of it on arrival and `MAX_OVERTAKEN` others go before it.
Once it has been overtaken that often, the running ones end one by one, as nobody is preempted
and each has a bounded number of steps, and alone it fits, or it would have been refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from diffusiongpt.engine.request import Request

MAX_OVERTAKEN = 16


@dataclass(slots=True)
class _Waiting:
    request: Request
    overtaken: int = 0


class WaitingLine:
    """Requests in order of arrival."""

    def __init__(self) -> None:
        self._line: list[_Waiting] = []

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Request]:
        return (each.request for each in self._line)

    def append(self, request: Request) -> None:
        """Let a request wait behind all others."""
        self._line.append(_Waiting(request))

    def take_next(self, is_admissible: Callable[[Request], bool]) -> Request | None:
        """Take the first request that is admissible now and may be admitted by the rule."""
        for place, each in enumerate(self._line):
            if is_admissible(each.request):
                for passed in self._line[:place]:
                    passed.overtaken += 1
                del self._line[place]
                return each.request
            if each.overtaken >= MAX_OVERTAKEN:
                return None
        return None

    def drop(self, request_id: str) -> Request | None:
        """Take a request out of the line; None when it does not wait."""
        for place, each in enumerate(self._line):
            if each.request.request_id == request_id:
                del self._line[place]
                return each.request
        return None
