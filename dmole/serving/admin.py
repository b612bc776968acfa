"""``POST`` and ``DELETE /v1/experts``: experts join and leave a running server."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from dmole.messages import one_line
from dmole.serving.errors import ApiError
from dmole.serving.models import check_names, list_models
from dmole.serving.service import Service

if TYPE_CHECKING:
    from dmole.inference import RoutedModel

log = logging.getLogger("dmole")
router = APIRouter()


class NewExpert(BaseModel):
    """The body of ``POST /v1/experts``."""

    model_config = ConfigDict(strict=True, extra="forbid")
    run: Annotated[str, Field(min_length=1, max_length=4000)]
    name: Annotated[str, Field(min_length=1, max_length=200)]


@router.post("/v1/experts", status_code=201)
async def add(body: NewExpert, request: Request) -> JSONResponse:
    """Add an expert of another run on the same base model."""
    service: Service = request.app.state.service
    run = _allowed_run(service, body.run)
    if body.name in service.experts:
        raise ApiError(409, f"there is already an expert called {body.name!r}", param="name")
    try:
        await add_expert(service, run, body.name)
    except ValueError as error:
        raise ApiError(400, one_line(error), param="run") from error
    entry = list_models(service.base, [body.name], service.created)[-1]
    return JSONResponse(entry, status_code=201)


@router.delete("/v1/experts/{name}")
async def remove(name: str, request: Request) -> dict[str, Any]:
    """Remove an expert; the files of its run stay."""
    service: Service = request.app.state.service
    _check_key(service)
    if name not in service.experts:
        raise _unknown(name)
    try:
        await service.change_experts(lambda model: model.remove_expert(name))
    except ValueError as error:
        if name not in service.experts:  # another request has taken it out meanwhile
            raise _unknown(name) from error
        raise ApiError(400, one_line(error)) from error
    service.removed.add(name)
    log.info("expert %s was removed", name)
    return {"id": name, "object": "model", "deleted": True}


async def add_expert(service: Service, run: Path, name: str) -> None:
    """Add an expert between two batches; requests that wait are answered after it.

    Args:
        service: The server.
        run: Folder of a run or bundle with the expert.
        name: The expert.

    Raises:
        ValueError: If the expert cannot be added; the others stay as they are.
    """

    def change(model: RoutedModel) -> None:
        check_names(service.base, [name])
        model.add_expert(run, name)

    await service.change_experts(change)
    log.info("expert %s of %s answers from now on", name, run)


def _unknown(name: str) -> ApiError:
    return ApiError(404, f"there is no expert {name[:100]!r}", code="model_not_found")


def _check_key(service: Service) -> None:
    if service.settings.access.api_key is None:
        raise ApiError(403, "experts are changed with an API key alone: start with --api_key")


def _allowed_run(service: Service, run: str) -> Path:
    _check_key(service)
    folder = service.settings.access.run_folder
    if folder is None:
        raise ApiError(403, "this server adds no experts: start it with --allow_experts DIR")
    root = os.path.realpath(folder)
    real = os.path.realpath(os.path.join(root, run)) if "\0" not in run else "/"
    if os.path.commonpath([real, root]) != root:
        raise ApiError(403, "the run must be below the folder that this server allows", param="run")
    return Path(real)
