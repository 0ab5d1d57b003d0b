"""Answers that were paid for already, in this store or in another one that shares the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ground.errors import CKDError, InvalidInput, StoreUnreadable, TooNarrow, store_command
from ground.places import ObjectUrl, parse_place
from storage.answers import ANSWER_NAMES
from storage.digest import vouches
from storage.float_types import NARROW_TYPES
from storage.identity import Identity
from storage.ledger_records import RecordedCall
from storage.manifest import EXTENSION, FILE_NAME
from storage.schema import OutputSpec
from storage.store import Store


class PaidAnswers:
    """Reads what recorded calls returned, from the stores that keep it.

    What a store was made from, by `convert` or `extend`, it keeps itself, wherever it is now. Other stores are looked
    for where the ledger says they are, if it is one that stores share; a store's own ledger leads nowhere else.

    Args:
        store: the store that is being built.
    """

    def __init__(self, store: Store) -> None:
        self._own = store
        base = store if store.file_name == FILE_NAME else Store.open(store.place)
        self._stores = dict.fromkeys(store.manifest.ids | base.manifest.ids, base) | {store.manifest.store_id: store}

    def read(self, calls: Sequence[RecordedCall], outputs: Sequence[OutputSpec]) -> dict[str, np.ndarray]:
        """Output name -> values, (1, ...), of one input, checked by digest.

        Args:
            calls: the committed calls on that input.

        Raises:
            InvalidInput: the store that keeps an output cannot be read, or kept something else.
            StoreUnreadable: what it keeps is not what the teacher returned.
        """
        values: dict[str, np.ndarray] = {}
        for output in outputs:
            call = keeper_of(calls, output)
            try:
                values |= self._read(call, output)
            except StoreUnreadable:
                if call.store == self._own.manifest.store_id:
                    raise
                # It may have grown, or been extended, since it was opened.
                del self._stores[call.store]
                values |= self._read(call, output)
        return values

    def keeper(self, call: RecordedCall) -> Store:
        """The store that keeps a call's outputs; raises `InvalidInput` if it cannot be read."""
        if call.store not in self._stores:
            if self._own.manifest.ledger is None:
                raise InvalidInput(
                    f"call {call.id} of the ledger belongs to another store than {self._own.place}; check it with: "
                    f"{self._own.command('verify')}"
                )
            self._stores[call.store] = open_keeper(call)
        return self._stores[call.store]

    def _read(self, call: RecordedCall, output: OutputSpec) -> dict[str, np.ndarray]:
        store = self.keeper(call)
        require_alike(store, self._own.manifest.identity, call, output)
        values, digests = store.read_cell(call.row * store.manifest.identity.views + call.view, (output,))
        if not vouches(call.digest_of(output.name), output, values[output.name], digests[0].tobytes()):
            raise StoreUnreadable(
                f"{output.name} of row {call.row} of {store.place} is not what call {call.id} of the ledger returned; "
                f"see what can be done with: {store.command('repair')}"
            )
        return values


def keeper_of(calls: Iterable[RecordedCall], output: OutputSpec) -> RecordedCall:
    """The call that kept an output; raises `InvalidInput` if none did."""
    found = list(calls)
    for call in found:
        if output.name in call.outputs:
            return call
    if not found:
        raise StoreUnreadable(f"the ledger knows no call that {output.name} could be copied from")
    keeper = parse_place(found[0].location)
    _require_same_kind(found[0], output)
    try:
        how = Store.open(keeper).command("extend", features=output.name)
    except (CKDError, OSError):
        how = store_command("extend", keeper, features=output.name)
    raise InvalidInput(
        f"call {found[0].id} is paid for, and {output.name} was not kept of it; give fewer --features, use another "
        f"--ledger, or add it to the store that keeps the call, with: {how}"
    )


def _require_same_kind(call: RecordedCall, output: OutputSpec) -> None:
    """Refuse an answer that is kept in another form: what would be computed of it is no answer that a ledger knows."""
    if output.name in ANSWER_NAMES and not ANSWER_NAMES.isdisjoint(call.outputs):
        kept = ", ".join(name for name in call.outputs if name in ANSWER_NAMES)
        raise InvalidInput(
            f"call {call.id} is paid for, and its answer is kept at {call.location} as {kept}, and not as "
            f"{output.name}; give the --keep of that store, or use another --ledger"
        )


def open_keeper(call: RecordedCall) -> Store:
    """The store that keeps a call's outputs; after an extension that is the one that took its place."""
    try:
        return find_store(call) or Store.open(parse_place(call.location))
    except (StoreUnreadable, OSError) as error:
        raise InvalidInput(
            f"call {call.id} is paid for and kept in a store at {call.location} that cannot be read; "
            "bring it back, or use another --ledger"
        ) from error


def find_store(call: RecordedCall) -> Store | None:
    """The store that keeps, or is about to keep, a call's outputs, if it can be read from here.

    Raises:
        StorageFailed, InvalidInput: it is in object storage, and nobody can say what is there.
    """
    place = parse_place(call.location)
    for file_name in (FILE_NAME, EXTENSION):
        try:
            store = Store.open(place, file_name)
        except (CKDError, OSError) as error:
            if isinstance(place, ObjectUrl) and not isinstance(error, StoreUnreadable):
                # That a service is away says nothing of what is there.
                raise
            continue
        if store.manifest.store_id == call.store:
            return store
    return None


def require_alike(store: Store, ours: Identity, call: RecordedCall, output: OutputSpec) -> None:
    """Refuse what a store keeps in another type, or of another precision, than ours.

    Raises:
        TooNarrow: it is kept in float32, and ours would be in a narrower type.
        InvalidInput: it is something else in any other way.
    """
    theirs = store.manifest.identity
    if output in theirs.outputs and theirs.teacher.answers_as(ours.teacher):
        return
    what = f"call {call.id} is paid for, and what is at {call.location} keeps something else of it"
    is_wider = OutputSpec(output.name, output.shape, "float32") in theirs.outputs and output.dtype in NARROW_TYPES
    if is_wider and theirs.teacher.answers_as(ours.teacher):
        why = f"{what}: {output.name} in float32 and not in {output.dtype}"
        raise TooNarrow(
            f"{why}; give --feature-dtype float32, and a store that is there already is widened first, which costs no "
            "call, with: ckd-cache widen --store DIR",
            why,
        )
    raise InvalidInput(
        f"{what}; give the same --features, --feature-dtype, --keep and --precision, or use another --ledger"
    )
