"""A trained student, brought back from its file."""

from __future__ import annotations

from pathlib import Path

from ground.errors import InvalidInput
from ground.user_code import CodeRefused, UserCode
from models.checkpoint import load_weights, read_weights
from models.network import Network
from models.registry import create_model
from models.reused_head import rebuild

# Only a student with its teacher's last layer has this in its state dict; see models/reused_head.py.
_REUSED_HEAD = "projector.0.weight"


def load_student(
    path: Path, name: str, num_classes: int, image_size: int, advice: str, *, code: UserCode = UserCode.REFUSED
) -> Network:
    """The network in a run's folder, in evaluation mode on the CPU; the caller's random numbers are left alone.

    Args:
        path: of its weights.
        name: of the network, as the run has it.
        image_size: H and W of its input.
        advice: what to do where it cannot be used; ends the sentence.
        code: what is done with a network that is code from outside this program.

    Raises:
        CodeRefused: the network is code that was not allowed.
        InvalidInput: the file is missing or damaged, or of another network or number of classes.
    """
    try:
        state = read_weights(path).state_dict
        # A seed of its own, for the caller's random numbers; every initial value is overwritten.
        if _REUSED_HEAD in state:
            network: Network = rebuild(name, state, image_size, code=code)
        else:
            network = create_model(name, num_classes, 0, image_size, code=code)
        load_weights(network, path)
        if network.num_classes != num_classes:
            raise InvalidInput(f"{path} has {network.num_classes} classes, the store {num_classes}")
    except CodeRefused:
        raise
    except (InvalidInput, ValueError, RuntimeError, IndexError) as error:  # the last two for shapes of no such network
        reason = " ".join(str(error).split())  # PyTorch says it in several lines
        raise InvalidInput(f"the student of {path.parent} cannot be used ({reason}); {advice}") from error
    return network.eval()
