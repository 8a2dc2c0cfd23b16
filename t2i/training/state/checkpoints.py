"""Manages the checkpoints of one run: finds the newest, saves new ones, and returns to the last sound one."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from t2i import checkpoint
from t2i.config.training import TrainConfig
from t2i.distributed import Ranks
from t2i.errors import InputError
from t2i.training.state.checks import refuse_another, refuse_other_parts
from t2i.training.state.parts import Parts, not_finite


class Checkpoints:
    """The folder of a run's checkpoints.

    Args:
        config: says how many checkpoints are kept and after how many minutes a new one is due.
        parts: the parts that each checkpoint holds.

    Attributes:
        sound: True if all losses and gradients of the last step were finite.
        rolled_back: True once the run has returned to an older checkpoint.
        saved_step, saved_at: step and time (`time.monotonic`) of the last save.
    """

    def __init__(self, folder: Path, config: TrainConfig, parts: Parts, ranks: Ranks):
        self._folder, self._config, self._parts, self._ranks = folder, config, parts, ranks
        self.sound, self.rolled_back = True, False
        self.saved_step, self.saved_at = 0, time.monotonic()

    def find(self, family: str) -> tuple[Path, dict[str, Any]] | None:
        """Returns the newest intact checkpoint and its manifest; None if the folder holds no checkpoints.

        Raises:
            InputError: no checkpoint is intact, or the newest belongs to another config or family.
        """
        path = checkpoint.latest(self._folder)
        if path is None and checkpoint.steps(self._folder):
            raise InputError(
                f"no checkpoint in {self._folder} is intact; restore one, or delete that folder to start from scratch"
            )
        if path is None:
            return None
        manifest = checkpoint.read_manifest(path)
        refuse_another(path, manifest, self._config, family)
        return path, manifest

    def load(self, path: Path) -> dict[str, Any]:
        """Loads a checkpoint, which must hold exactly the registered parts; returns its manifest."""
        state, manifest = checkpoint.load(path)
        refuse_other_parts(path, state.keys(), self._parts)
        self._parts.load(state)
        return manifest

    def save(self, step: int, manifest: Callable[[], Mapping[str, Any]], rollback: Callable[[], bool]) -> None:
        """Writes a checkpoint on the main process and deletes old ones, while all ranks wait.

        Args:
            rollback: returns to an older checkpoint if a weight is not finite; returns False if that is impossible.

        Raises:
            InputError: on every rank, if the disk is full or a weight is not finite; older checkpoints stay intact.
        """
        on_main = self._ranks.on_main
        state = self._ranks.each(self._parts.state)
        spoilt = self._ranks.broadcast(on_main(lambda: not_finite(state, step, self._folder)))
        if spoilt is not None:
            # skipping steps cannot repair a weight, so this does not wait for the guard to count failed steps
            if not rollback():
                raise InputError(spoilt)
            self.sound, state = True, self._ranks.each(self._parts.state)
        on_main(lambda: self._write(step, state, {**manifest(), "sound": self.sound, "rolled_back": self.rolled_back}))
        self.saved_step, self.saved_at = step, time.monotonic()

    def _write(self, step: int, state: checkpoint.State, manifest: Mapping[str, Any]) -> None:
        checkpoint.save(self._folder, step, state, manifest)
        pinned = [path for path in checkpoint.steps(self._folder) if (path / "keep").exists()]
        if not self.sound and (last := self._last_sound()):
            pinned.append(last)  # what `roll_back` goes back to
        checkpoint.rotate(self._folder, self._config.checkpoints_total_limit, pinned)

    def are_late(self, step: int) -> bool:
        """Returns True on the main process if `checkpointing_minutes` have passed since the last save."""
        minutes = self._config.checkpointing_minutes
        late = minutes is not None and time.monotonic() - self.saved_at > 60 * minutes
        return late and self._ranks.is_main and step != self.saved_step

    def roll_back(self) -> int | None:
        """Loads the newest sound checkpoint; returns its step, or None if there is none or it was done before."""
        path = None if self.rolled_back else self._ranks.broadcast(self._ranks.on_main(self._last_sound))
        if path is None:
            return None
        self.rolled_back = True
        return self.load(path)["step"]

    def _last_sound(self) -> Path | None:
        return checkpoint.latest(self._folder, lambda manifest: manifest.get("sound", True))
