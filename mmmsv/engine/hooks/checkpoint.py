"""Save checkpoints that survive a killed run, each whole or not there, and that any tool reads."""

import os
import re
import tempfile
import zipfile
from pathlib import Path

from mmengine import hooks as mmengine_hooks
from mmengine.dist import barrier, is_main_process
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmmsv.compat.plain_checkpoints import make_plain, restore
from mmmsv.messages import first_of
from mmmsv.registry import HOOKS
from mmmsv.whole_files import UNFINISHED, write_whole

_BACKEND = "mmmsv_whole_files"


@register_backend(_BACKEND)
class WholeFileBackend(LocalBackend):
    """Store files as MMEngine's local storage does, but each whole or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write ``obj`` to ``filepath``; its folder is made if it is missing."""
        write_whole(filepath, obj)


@HOOKS.register_module()
class CheckpointHook(mmengine_hooks.CheckpointHook):
    """MMEngine's ``CheckpointHook``, with the same arguments, for runs that may be killed at any moment.

    MMEngine removes the oldest checkpoint before it writes the next, and writes that in place, and then
    ``last_checkpoint``, which ``--resume`` reads. A run killed meanwhile leaves a torn file, an empty
    ``last_checkpoint`` or, with ``max_keep_ckpts=1``, no checkpoint at all. Here a file appears whole
    (:func:`~mmmsv.whole_files.write_whole`), then ``last_checkpoint`` names it, and then what it replaces is removed;
    likewise the best checkpoints of ``save_best``, of which a kill may leave one too many. Files on a remote storage
    (``out_dir='s3://...'``), or given the deprecated ``file_client_args``, are written in MMEngine's way.

    Checkpoints hold plain data, also what other hooks have added, so that ``torch.load`` reads them with nothing
    imported (:mod:`~mmmsv.compat.plain_checkpoints`). A resumed run and its other hooks get histories and NumPy values
    as they were.

    A run that is to go on from the last checkpoint takes the one in ``last_checkpoint``. If that is torn or gone, as
    it may be after a run without this hook, it takes the newest whole one, and logs it.

    Raises:
        FileNotFoundError: There is a checkpoint to resume from, but none that is whole.
        ValueError: The folder of the checkpoints cannot be written; before anything is trained.
    """

    def before_run(self, runner: Runner) -> None:
        """Make ``last_checkpoint`` name a whole file, before MMEngine reads it."""
        # The last one sees what all others add, and the first one restores it before they read it. A new list, since
        # MMEngine is going through the old one.
        if not any(isinstance(hook, _RestoreHook) for hook in runner._hooks):
            runner._hooks = [_RestoreHook(), *runner._hooks, _PlainHook()]
        if runner._resume and runner._load_from is None:
            try:
                if is_main_process():
                    self._mend_last_checkpoint(runner)
            finally:
                barrier()  # also when it failed: the others would wait for ever

    def _mend_last_checkpoint(self, runner: Runner) -> None:
        pointer = Path(runner.work_dir, "last_checkpoint")
        # A power cut may leave a file of zeros.
        named = os.fsdecode(pointer.read_bytes().strip(b"\0\n ")) if pointer.exists() else None
        if named and _is_whole(named):
            return
        folder = Path(runner.work_dir)
        if self.out_dir not in (None, runner.work_dir):
            folder = Path(self.out_dir, folder.name)
        saved = self._saved_in(folder)
        if named is None and not saved:
            return  # A run that has saved nothing yet starts over; MMEngine logs it.
        fault = f"{pointer} is missing" if named is None else f"{pointer} names {named!r}, which is torn or gone"
        newest = next((path for path in saved if _is_whole(path)), None)
        if newest is None:
            raise FileNotFoundError(
                f"no checkpoint to resume from: {fault}, and none in {folder} is whole (looked at: "
                f"{first_of(path.name for path in saved) or 'nothing'}); resume from another by its path, or train "
                "from the beginning, without resuming"
            )
        runner.logger.warning(f"{fault}; the newest whole checkpoint is {newest}")
        write_whole(pointer, os.fsencode(newest))

    def _saved_in(self, folder: Path) -> list[Path]:
        """List the checkpoints in a folder, the newest first; best and published ones are none to resume from."""
        name = re.compile("[0-9]+".join(map(re.escape, re.split(r"\{[^}]*\}", self.filename_tmpl))))
        saved = [path for path in folder.glob("*") if name.fullmatch(path.name)]
        return sorted(saved, key=lambda path: path.stat().st_mtime_ns, reverse=True)

    def before_train(self, runner: Runner) -> None:
        """Choose the storage, and clear away what a killed run left unfinished."""
        if self.file_client_args is None:
            storage = get_file_backend(self.out_dir or runner.work_dir, backend_args=self.backend_args)
            if type(storage) is LocalBackend:
                self.backend_args = {"backend": _BACKEND}
        super().before_train(runner)
        if is_main_process():
            if self.backend_args == {"backend": _BACKEND}:
                _check_writable(self.out_dir)
            for folder in {str(runner.work_dir), str(self.out_dir)}:
                for unfinished in Path(folder).glob(f"*{UNFINISHED}"):
                    unfinished.unlink()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Make the checkpoint plain data, where it is saved outside of a run."""
        make_plain(checkpoint)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restore what was made plain, where a checkpoint is loaded outside of a run."""
        restore(checkpoint)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            steps = [*self.keep_ckpt_ids, step]
            outdated = steps[: -self.max_keep_ckpts]
            self.keep_ckpt_ids.append(step)
            # With the outdated one: should the run be killed before that is removed, the resumed run removes it.
            runner.message_hub.update_info("keep_ckpt_ids", steps)
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            self.filename_tmpl.format(step),
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_whole(Path(runner.work_dir, "last_checkpoint"), os.fsencode(self.last_ckpt))
            for old in outdated:
                self._remove(self._path(old))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        # MMEngine keeps the path of one metric in an attribute, those of several in a dict.
        single = len(self.key_indicators) == 1
        paths, names = (vars(self), ["best_ckpt_path"]) if single else (self.best_ckpt_path_dict, self.key_indicators)
        previous = {name: paths[name] for name in names}
        # What it does not know it does not remove before it writes.
        paths.update(dict.fromkeys(names))
        super()._save_best_checkpoint(runner, metrics)
        for name, path in previous.items():
            if paths[name] is None:  # none was better
                paths[name] = path
            elif path not in (None, paths[name]) and is_main_process():
                self._remove(path)

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # DeepSpeed's checkpoints are folders
            # pyrefly: ignore[missing-attribute]: MMEngine's deprecated FileClient lacks it, as in its own hook
            self.file_backend.rmtree(path)


class _PlainHook(Hook):
    """Makes a checkpoint plain data, after all other hooks have added to it."""

    priority = "LOWEST"

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        make_plain(checkpoint)


class _RestoreHook(Hook):
    """Restores a checkpoint before any other hook reads it."""

    priority = "HIGHEST"

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        restore(checkpoint)


def _check_writable(folder: str) -> None:
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"CheckpointHook cannot write to {folder} ({error.strerror}); give another out_dir, or another work_dir"
        ) from error


def _is_whole(path: str | Path) -> bool:
    """Whether a checkpoint is there with its end: torch writes zip files, whose table of contents comes last."""
    # Remote storages and the folders of DeepSpeed are taken on trust.
    return "://" in str(path) or Path(path).is_dir() or zipfile.is_zipfile(path)
