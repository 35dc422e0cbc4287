"""Endpoints of tokens: who may use the API."""

from datetime import timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from orchestrator.api import answers, problems
from orchestrator.api.dependencies import Given
from orchestrator.api.guard import requires
from orchestrator.domain.access import Principal, Role, token_document
from orchestrator.services.tokens import LONGEST_LIFE, MOST_REQUESTS

routes = APIRouter(prefix="/tokens", tags=["access"])

Admin = Annotated[Principal, Depends(requires(Role.ADMIN))]
Word = Annotated[str, Field(min_length=1, max_length=64)]


class TokenBody(BaseModel):
    """A token to make."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Word = Field(description="What the audit calls it; never used again, also when it is revoked.")
    role: Annotated[Role, Field(strict=False)] = Field(description="What it may do.")
    tenant: Word | None = Field(
        default=None,
        description="Whose jobs it sees and changes; of a submitter always, of an operator or admin never.",
    )
    expires_seconds: Annotated[float, Field(gt=0, le=LONGEST_LIFE.total_seconds())] | None = Field(
        default=None, description="It is in force for so long; default: until it is revoked."
    )
    requests_per_minute: Annotated[int, Field(ge=1, le=MOST_REQUESTS)] | None = Field(
        default=None, description="It may send so many; default: as the settings say."
    )


class Token(BaseModel):
    """A token, without its secret."""

    name: str
    id: str = Field(description="The part of the secret after `orch_`.")
    role: Role
    tenant: str | None
    requests_per_minute: int | None
    created_by: str
    created_at: AwareDatetime
    expires_at: AwareDatetime | None
    revoked_at: AwareDatetime | None
    last_used_at: AwareDatetime | None = Field(description="To the minute.")


class NewToken(Token):
    """A new token."""

    secret: str = Field(description="Told here and never again: a hash of it is kept.")


class Tokens(BaseModel):
    """All tokens."""

    tokens: list[Token]


class Revoked(BaseModel):
    """A token that is in force no more."""

    name: str
    revoked: bool


_MADE: Final[dict[int | str, dict[str, Any]]] = {**answers.answers(NewToken, 201), **problems.responses(409)}


@routes.get("", responses=answers.answers(Tokens))
def list_tokens(given: Given, _: Admin) -> Any:
    """List the tokens by name, those that are revoked or expired too."""
    return {"tokens": [token_document(token) for token in given.runtime.access.tokens()]}


@routes.post("", status_code=201, responses=_MADE)
def create(given: Given, caller: Admin, body: TokenBody) -> Any:
    """Make a token. Its secret is told here and never again; a name that was ever used is refused."""
    life = None if body.expires_seconds is None else timedelta(seconds=body.expires_seconds)
    token, secret = given.tokens.create(
        body.name,
        role=body.role,
        tenant=body.tenant,
        life=life,
        requests_per_minute=body.requests_per_minute,
        by=caller.name,
    )
    return token_document(token) | {"secret": secret}


@routes.delete("/{name}", responses=answers.answers(Revoked))
def revoke(
    given: Given, caller: Admin, name: Annotated[str, Path(max_length=64, description="The token's name.")]
) -> Any:
    """End a token: no API process accepts it two seconds later."""
    given.tokens.revoke(name, by=caller.name)
    return {"name": name, "revoked": True}
