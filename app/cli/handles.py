"""Handles and bindings, as `tollgate token` needs them of the cluster: what a handle stands for, and what is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

from app.cli import common

if TYPE_CHECKING:
    from app.config import Settings
    from app.gate.claims import BoundTo
    from app.gate.reasons import Rejected
    from app.issuer.mint import Minted

AT_ONCE: Final = 500  # grants in flight


def grant_of(token: str, settings: Settings) -> str | Rejected:
    """The unverified grant of a handle; any other token speaks for itself."""
    from app import grants
    from app.gate.reasons import Rejected
    from app.gate.reference import is_handle

    if not is_handle(token):
        return token
    found = common.run(grants.find(settings.kafka, token))
    return Rejected("token_unknown") if found is None else found.decode("utf-8", "replace")


async def issue(settings: Settings, made: Callable[[int], Minted], count: int) -> None:
    """Print `count` handles, each once its grant is committed."""
    async with handing_out(settings) as hand_out:
        for start in range(0, count, AT_ONCE):
            await hand_out([made(number) for number in range(start, min(count, start + AT_ONCE))])


@asynccontextmanager
async def handing_out(settings: Settings) -> AsyncIterator[Callable[[Sequence[Minted]], Awaitable[None]]]:
    """What prints tokens; handles once what they stand for is committed."""
    from app import grants

    write: grants.Write | None = None
    async with AsyncExitStack() as opened:

        async def hand_out(minted: Sequence[Minted]) -> None:
            nonlocal write
            records = [each.grant for each in minted if each.grant is not None]
            if records:
                if write is None:
                    write = await opened.enter_async_context(grants.writer(settings.kafka))
                await write(records)
            print("\n".join(each.token for each in minted), flush=True)

        yield hand_out


async def object_of(settings: Settings, registry_key: str) -> BoundTo:
    """The object that the registry holds now under this key."""
    from app import registry
    from app.gate.claims import BoundTo
    from app.gate.definitions import birth_id_in

    birth_id = birth_id_in((await registry.read_registry(settings)).get(registry_key.encode()))
    if birth_id is None:
        common.fail(f"the registry holds nothing under {registry_key}: give job/NAME or trust/ISSUER", common.USAGE)
    if not birth_id:
        common.fail(f"{registry_key} has no birth id to tell it from one made anew: apply its definition again")
    return BoundTo(registry_key, birth_id)
