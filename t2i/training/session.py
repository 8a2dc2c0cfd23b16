"""Sets up the processes of a training run and its directory: Accelerator, lock, journal, checkpoints."""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

import t2i
from t2i.config.training import TrainConfig
from t2i.distributed import PATIENCE, Ranks
from t2i.errors import InputError, os_errors
from t2i.training import directory as papers
from t2i.training.accelerator import make_accelerator
from t2i.training.journal import Journal
from t2i.training.state.checkpoints import Checkpoints
from t2i.training.state.identity import Identity, config_digest
from t2i.training.state.parts import Part, Parts
from t2i.training.state.sharding import is_sharded, shard, whole
from t2i.training.trackers import Tracking

LOGGING_SECONDS = 10.0  # time between two lines on stderr if it is not a terminal

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


class MicroBatch(Protocol):
    """A batch that a loader yields; `sample_ids` are the positions of its images since the start of training."""

    @property
    def sample_ids(self) -> Any: ...


class Session:
    """The processes that train one run, and its directory, which the main process locks. `Run` adds the steps.

    Attributes:
        accelerator: made from the config.
        device, is_main, num_processes, process_index: properties of this process.
        directory: the run directory.
        journal: None on every process but the main one.
        ranks: takes decisions of all processes together.
        identity: digests of the data and of frozen networks, which must be the same on resume.
        is_new: True if the directory has no checkpoint; files of an earlier start are then overwritten.
        parts: the registered parts.
        extra: further keys of the manifest of every checkpoint.
    """

    def __init__(self, directory: Path, config: TrainConfig, family: str):
        self.directory, self.config, self.family = Path(directory), config, family
        self.extra: dict[str, Any] = {}
        self.accelerator = make_accelerator(config, self.directory, family)
        self.device = self.accelerator.device
        self.is_main = self.accelerator.is_main_process
        self.num_processes = self.accelerator.num_processes
        self.process_index = self.accelerator.process_index
        self.ranks = Ranks(self.num_processes, self.is_main, PATIENCE)
        if not self.ranks.all(self.ranks.broadcast(config_digest(config)) == config_digest(config)):
            raise InputError("the processes of this run have different configs; start all of them with one command")

        # The main process locks the directory, finds the newest checkpoint and opens the journal
        self.journal: Journal | None = None
        self._lock: papers.DirectoryLock | None = None
        self.parts = Parts(self.accelerator.unwrap_model, self.is_main)
        self._checkpoints = Checkpoints(self.directory / "checkpoints", config, self.parts, self.ranks)
        self._tracking = Tracking(self.accelerator, config.report_to, self.directory)
        self._newest = self.on_main(self._open)
        self.is_new = self._newest is None
        if self._newest is not None and "init" in self._newest[1]:
            self.extra["init"] = self._newest[1]["init"]
        self.identity = Identity(self.directory, self.ranks, None if self._newest is None else self._newest[1])

    def _open(self) -> tuple[Path, dict[str, Any]] | None:
        """Locks the directory (main process); returns the checkpoint to resume from and its manifest, None if there is none."""
        with os_errors(f"run directory {self.directory} cannot be written", "name another"):
            self._lock = papers.DirectoryLock(self.directory)
            try:
                papers.refuse_anothers(self.directory, self.family)
                newest = self._checkpoints.find(self.family)
                if newest is None:
                    self.describe()
                path, steps = self.directory / "journal.jsonl", self.config.max_train_steps
                self.journal = Journal(path, steps, LOGGING_SECONDS, self._tracking.log)
                return newest
            except BaseException:
                self._lock.release()
                raise

    def describe(self) -> None:
        """Writes config.yaml and command.json (main process)."""
        facts = {"device": str(self.device), "num_processes": self.num_processes}
        facts |= {"mixed_precision": self.accelerator.mixed_precision}
        papers.describe(self.directory, self.config, self.family, sys.argv, facts)

    def release(self) -> None:
        """Closes the tracker and the journal and releases the directory."""
        self._tracking.close()
        if self.journal is not None:
            self.journal.close()
        if self._lock is not None:
            self._lock.release()

    # ---- main process -----------------------------------------------------------------------------------------------

    def on_main(self, action: Callable[[], T]) -> T:
        """Runs `action` on the main process and returns its result on every rank; its exceptions are raised on every rank."""
        return self.ranks.broadcast(self.ranks.on_main(action))  # type: ignore[return-value]

    def say(self, text: str) -> None:
        """Prints text on the main process's console."""
        if self.journal is not None:
            self.journal.say(text)

    def quarantine(self, broken: Mapping[str, Any]) -> None:
        """Records an image that cannot be decoded in quarantine.jsonl; for `Loader(on_broken=...)`."""
        papers.quarantine(self.directory, broken)

    # ---- networks ---------------------------------------------------------------------------------------------------

    def register(self, name: str, part: Part) -> None:
        """Has every checkpoint save `part` as `{name}.safetensors`. Call it before `resume`, on every rank."""
        self.parts.add(name, part)

    def prepare(self, module: M, compile: bool = False) -> M:
        """Wraps a module on its device for the processes and the precision of the run; compiles it if `compile` is True."""
        if is_sharded(module):  # a sharded module exchanges gradients itself
            prepared: Any = self.accelerator.prepare_model(module, device_placement=False, evaluation_mode=True)
        else:
            prepared = self.accelerator.prepare(module)
        if compile:
            prepared.compile()
        return prepared

    def shard(self, model: nn.Module, blocks: Iterable[nn.Module], average: nn.Module) -> None:
        """Shards a model and its average (`state.sharding.shard`); has no effect on one process."""
        if self.num_processes == 1:
            warnings.warn("sharding has no effect on one process; start several with torchrun", stacklevel=2)
        else:
            bf16 = self.accelerator.mixed_precision == "bf16"
            self.ranks.each(lambda: shard(model, blocks, average, self.device, bf16))

    def whole(self, average: M) -> M:
        """Returns an average with full weights on the main process, to validate it there. Call it on every rank."""
        return self.ranks.each(lambda: whole(average, self.is_main))

    def autocast(self) -> AbstractContextManager[None]:
        """Returns a context with the precision of the run, for a network that `prepare` has not wrapped."""
        return self.accelerator.autocast()

    def accumulate(self, module: nn.Module, micros: Sequence[T]) -> Iterator[T]:
        """Yields micro-batches to run backward on; processes exchange gradients of `module` only at the last one.

        Gradients of a sharded module are exchanged at each one, as full gradients would not fit into memory.
        """
        for i, micro in enumerate(micros):
            with nullcontext() if i == len(micros) - 1 else self.accelerator.no_sync(module):
                yield micro

    # ---- manifests --------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """Returns the entries of every manifest that describe how the run is trained."""
        return {
            "family": self.family,
            "num_processes": self.num_processes,
            "arithmetic": self.arithmetic(),
            "config_hash": config_digest(self.config),
            "config": self.config.model_dump(mode="json"),
            "versions": {"t2i": t2i.__version__, "torch": torch.__version__},
            **self.identity.digests,
            **self.extra,
        }

    def arithmetic(self) -> dict[str, Any]:
        """Returns the settings that only change how sums are rounded."""
        threads = {"threads": torch.get_num_threads()} if self.device.type == "cpu" else {}
        precision = {"device": self.device.type, "mixed_precision": self.accelerator.mixed_precision}
        sharding = {"sharding": kind} if (kind := getattr(self.config, "sharding", "none")) != "none" else {}
        return precision | {"compile": self.config.compile} | sharding | threads
