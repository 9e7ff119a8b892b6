"""The checkpoints in a folder: which there are, which are whole, which are kept.

For the chief alone, except for :func:`file_faults`.
"""

import logging
import re

from pipeline.checkpoint.errors import CheckpointError
from pipeline.checkpoint.files import below, fault_of, remove_folder
from pipeline.checkpoint.marker import MARKER, DamagedMarkerError, Marker, kept_steps
from pipeline.data.storage import Store

_logger = logging.getLogger(__name__)
_FOLDER = re.compile(r"step-(\d{8,})")


def folder_name(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step-{step:08d}"


def read_marker(store: Store) -> Marker:
    """The marker of a checkpoint's folder.

    Raises:
        DamagedMarkerError: it is not as it was written, or belongs to another folder.
        CheckpointError: a version that this code does not know.
        OSError: it cannot be read; FileNotFoundError where there is none.
    """
    try:
        marker = Marker.from_text(store.read_text(MARKER), store.location)
    except UnicodeDecodeError as error:
        raise DamagedMarkerError("is not a marker") from error
    if store.root.rpartition("/")[2] != folder_name(marker.step):
        raise DamagedMarkerError(f"belongs to another checkpoint (of step {marker.step})")
    return marker


def file_faults(store: Store, marker: Marker, share: int = 0, shares: int = 1) -> list[str]:
    """What is wrong with a checkpoint's files, or with one of several shares of them.

    Raises:
        OSError: the store does not answer, or may not be read.
    """
    loads = [0] * shares
    faults = []
    for record in sorted(marker.files, key=lambda record: -record.size):
        lightest = loads.index(min(loads))
        loads[lightest] += record.size
        if lightest == share and (fault := fault_of(store, record)) is not None:
            faults.append(fault)
    return faults


class Catalog:
    """The markers in a folder of checkpoints.

    Attributes:
        markers: of the whole ones, by step.
        damaged: steps of those that are not.
        unknown: steps of those of a version that this code does not know; they stay.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.markers: dict[int, Marker] = {}
        self.damaged: set[int] = set()
        self.unknown: set[int] = set()

    def read(self) -> None:
        """Reads all markers; what a killed save left is removed. Raises OSError."""
        for step in self._steps():
            folder = below(self._store, folder_name(step))
            try:
                self.markers[step] = read_marker(folder)
            except FileNotFoundError:
                _logger.info("%s: removed, its save was never finished", folder.location)
                remove_folder(folder, MARKER)
            except DamagedMarkerError:
                self.damaged.add(step)
            except CheckpointError:
                self.unknown.add(step)

    def found_damaged(self, step: int) -> None:
        """Takes a checkpoint off the list of whole ones; it goes when the next is saved."""
        self.markers.pop(step, None)
        self.damaged.add(step)

    def forget_after(self, step: int) -> None:
        """Training went back to this step: what was saved later belongs to no run any more."""
        self.markers = {s: marker for s, marker in self.markers.items() if s <= step}

    def remove_superseded(self, keep_last: int, keep_best: int) -> None:
        """Removes all but the kept ones; one that cannot be removed is logged and tried again."""
        kept = kept_steps(self.markers, keep_last, keep_best)
        self.markers = {step: marker for step, marker in self.markers.items() if step in kept}
        try:
            for step in self._steps():
                if step not in kept and step not in self.unknown:
                    remove_folder(below(self._store, folder_name(step)), MARKER)
                    self.damaged.discard(step)
        except OSError as error:
            _logger.warning("an old checkpoint cannot be removed: %s", error)

    def _steps(self) -> list[int]:
        matches = (_FOLDER.fullmatch(name) for name in self._store.names())
        return [int(match[1]) for match in matches if match]
