"""A job request as JSON, with the fields that the router needs."""

from typing import Annotated

import msgspec
from msgspec import Meta

from routing.cli.io.errors import WrongInput
from routing.texts import printable

_Seconds = Annotated[float, Meta(ge=0)]

EXAMPLE = (
    '{"uuid":"6f1c…","executor_class":"always_on.gpu-24gb",'
    '"download_time_limit":5,"execution_time_limit":30,"upload_time_limit":5}'
)


class JobRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A job to be routed; time limits are in seconds. Further fields are ignored, so a full request can be passed."""

    uuid: Annotated[str, Meta(min_length=1)]
    executor_class: Annotated[str, Meta(min_length=1)]
    download_time_limit: _Seconds
    execution_time_limit: _Seconds
    upload_time_limit: _Seconds
    on_trusted_miner: bool = False


def job_request(text: bytes) -> JobRequest:
    """Return the request of a JSON text. Raise `WrongInput`, which says what is wrong and what would be right."""
    try:
        return msgspec.json.decode(text, type=JobRequest)
    except (ValueError, RecursionError) as error:
        problem = printable(str(error)[:300])
        raise WrongInput(
            f"not a job request: {problem}; right would be {EXAMPLE}", problem=problem, expected=EXAMPLE
        ) from error
