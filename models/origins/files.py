"""What origins have in common whose networks are files, weights included: ORIGIN:FILE, or ORIGIN:FILE#OUTPUT.

OUTPUT names the output that holds the logits, where several could.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ground.errors import InvalidInput
from ground.terminal import plain
from ground.user_code import UserCode
from models.file_network import FileNetwork, Program
from models.file_stamp import Stamp, is_as_stamped, stamp_of
from models.names import locate
from models.network_card import NetworkCard, read_card
from models.origins.contract import Asked, Preprocessing

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What has to be known of a file before it runs.

    Args:
        size: H and W of its input; None for any.
        digest: of its content.
        texts: what it says of itself.
    """

    size: int | None
    digest: str
    texts: Mapping[str, str]


class FileOrigin(ABC):
    """See `models.origins.contract.Origin`; teachers only."""

    scheme: str
    package: str | None = None
    extra: str | None = None

    @abstractmethod
    def facts(self, stamp: Stamp) -> FileFacts:
        """Of the file that was stamped; raises `InvalidInput` for one that cannot be used."""

    @abstractmethod
    def program(self, stamp: Stamp) -> Program:
        """What runs the file; raises `InvalidInput`."""

    def require_allowed(self, name: str, code: UserCode) -> None:  # noqa: B027  most need no permission
        """Raise `InvalidInput` where loading the file runs code, and that was not allowed."""

    def check(self, name: str) -> None:
        """See `Origin.check`."""
        try:
            path, _ = locate(name)
            # Asked first: opening a pipe would wait for its other end.
            if path.exists() and not path.is_file():
                raise InvalidInput(f"{path} is no file; give the file of a network")
            with path.open("rb") as file:
                if not file.read(1):
                    raise InvalidInput(f"{path} is an empty file; give the file of a network")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InvalidInput(f"{self.scheme}:{name} cannot be read ({reason}); check the path of the file") from error

    def preprocessing(self, asked: Asked) -> Preprocessing:
        """See `Origin.preprocessing`: what its card says."""
        _, facts, card = self._read(asked)
        return card.preprocessing(self._name(asked), facts.size, asked.image_size)

    def class_names(self, asked: Asked) -> tuple[str, ...] | None:
        """See `Origin.class_names`: what its card says."""
        return self._read(asked)[2].classes

    def untrained(self, asked: Asked, num_classes: int) -> nn.Module:
        """See `Origin.untrained`: there is none."""
        raise InvalidInput(
            f"{self._name(asked)} is a teacher with its weights in it: it takes no others and cannot be trained; leave "
            "--weights out, and give students a network of another origin"
        )

    def trained(self, asked: Asked) -> nn.Module:
        """See `Origin.trained`."""
        stamp, facts, card = self._read(asked)
        path, chosen = locate(asked.name)
        name = f"{self.scheme}:{path}"
        if facts.size not in (None, asked.image_size):
            raise InvalidInput(
                f"{name} takes images of {facts.size} pixels, and would be given {asked.image_size}; leave out "
                f"--input-size, or give --input-size {facts.size}"
            )
        network = FileNetwork(
            name, self.program(stamp), asked.image_size, facts.digest, card.output if chosen is None else chosen
        )
        if not is_as_stamped(stamp) or self.facts(stamp) != facts:
            raise InvalidInput(f"{path} was written to while it was read; try again when it is whole")
        if card.classes is not None and len(card.classes) != network.num_classes:
            raise InvalidInput(
                f"{name} answers for {network.num_classes} classes, and its card names {len(card.classes)}; correct "
                "the card"
            )
        if not card.shows_images:
            log.info(
                "%s",
                plain(
                    f"{name} does not say how it is shown images; it is taken to be {asked.image_size} pixels, with "
                    "the mean and deviation of the data set (a card beside it can say it)"
                ),
            )
        return network

    def _read(self, asked: Asked) -> tuple[Stamp, FileFacts, NetworkCard]:
        self.require_allowed(self._name(asked), asked.code)
        path, _ = locate(asked.name)
        stamp = stamp_of(path)
        facts = self.facts(stamp)
        return stamp, facts, read_card(path, facts.texts)

    def _name(self, asked: Asked) -> str:
        return f"{self.scheme}:{asked.name}"
